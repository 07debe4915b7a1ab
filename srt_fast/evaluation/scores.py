"""Scores of an evaluation: pass@1, unbiased pass@k, maj@k. Plain Python on lists, no model and no tensors.

Worked example: two prompts with four samples each, correct [1 1 0 1] and [0 0 1 0], the majority right and wrong. Then
pass@1 = (3/4 + 1/4) / 2 = 0.5, pass@2 = (1 + 1/2) / 2 = 0.75, pass@4 = 1, maj@4 = 0.5 and gap = maj@4 - pass@1 = 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Vote shares from which on a majority is believed, for the calibration of the share as confidence."""


def pass_at_k(n: int | Sequence[int], c: int | Sequence[int], k: int) -> float | list[float]:
    """Chance that at least one of k samples is correct, given that c of n were: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of Chen et al., arXiv 2107.03374. `n` and `c` are ints, or sequences with one entry per
    prompt (an int beside a sequence is used for every prompt); the answer has the same form. The binomials are exact
    integers and are divided once, so the result is correctly rounded at any n.
    """
    if isinstance(n, int) and isinstance(c, int):
        if not (1 <= k <= n and 0 <= c <= n):
            raise ValueError(
                f"pass_at_k: expected 1 <= k <= n and 0 <= c <= n, got n={n}, c={c}, k={k}"
            )
        every = math.comb(n, k)
        return (every - math.comb(n - c, k)) / every
    ns = [n] * len(c) if isinstance(n, int) else n
    cs = [c] * len(ns) if isinstance(c, int) else c
    if len(ns) != len(cs):
        raise ValueError(f"pass_at_k: expected n and c of one length, got {len(ns)} and {len(cs)}")
    return [pass_at_k(n_i, c_i, k) for n_i, c_i in zip(ns, cs, strict=True)]


def summarize(
    correct: Sequence[Sequence[bool]], majority_correct: Sequence[bool], shares: Sequence[float]
) -> dict[str, float | int | None]:
    """Scores over P prompts, under the names that metrics of kind "eval" have.

    `correct[p]` says for each sample of prompt p whether it is right, `majority_correct[p]` whether the majority
    answer is, and `shares[p]` is the majority's share of the votes. Returned: `pass1` (avg@k: mean over prompts of the
    mean over samples), `pass1_se` (its standard error with prompts as clusters, because the samples of one prompt are
    not independent; None with a single prompt), `pass@2`, `pass@4` ... up to the smallest group, `maj`, `gap`
    (maj - pass1: what the vote knows beyond a sample), `vote_share`, for each of SHARES `coverage@share` (part of the
    prompts whose majority has at least that share) and `maj@share` (accuracy of the majority on these, None if there are
    none), `prompts` and `k` (size of the smallest group).
    """
    if not correct:
        raise ValueError("summarize: expected at least one prompt, got none")
    if not len(correct) == len(majority_correct) == len(shares):
        got = f"{len(correct)}, {len(majority_correct)} and {len(shares)}"
        raise ValueError(
            f"summarize: expected correct, majority_correct and shares of one length, got {got}"
        )
    n = [len(samples) for samples in correct]
    if min(n) == 0:
        raise ValueError(
            f"summarize: expected at least one sample per prompt, got none for prompt {n.index(0)}"
        )
    c = [sum(map(bool, samples)) for samples in correct]
    rates = [c_p / n_p for c_p, n_p in zip(c, n, strict=True)]
    scores = {"pass1": statistics.fmean(rates)}
    scores["pass1_se"] = statistics.stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else None
    k = 2
    while k <= min(n):
        scores[f"pass@{k}"] = statistics.fmean(pass_at_k(n, c, k))
        k *= 2
    scores["maj"] = statistics.fmean(map(bool, majority_correct))
    scores["gap"] = scores["maj"] - scores["pass1"]
    scores["vote_share"] = statistics.fmean(shares)
    for bar in SHARES:
        sure = [
            bool(right)
            for right, share in zip(majority_correct, shares, strict=True)
            if share >= bar
        ]
        scores[f"coverage@{bar:g}"] = len(sure) / len(shares)
        scores[f"maj@{bar:g}"] = statistics.fmean(sure) if sure else None
    return scores | {"prompts": len(correct), "k": min(n)}
