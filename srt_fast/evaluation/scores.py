"""Scores of an evaluation: pass@1, unbiased pass@k, maj@k. Plain Python on lists.

Worked example: two prompts with four samples each, correct [1 1 0 1] and [0 0 1 0]. The majority is
right for the first prompt and wrong for the second. Then pass@1 = (3/4 + 1/4) / 2 = 0.5,
pass@2 = (1 + 1/2) / 2 = 0.75, pass@4 = 1, maj@4 = 0.5 and gap = maj@4 - pass@1 = 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Vote shares for the calibration of the share as confidence. See `summarize`."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples is correct if c of n are: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of Chen et al., arXiv 2107.03374. The binomials are exact integers and
    are divided once, so the result is correctly rounded for any n.

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(
            f"pass_at_k: expected 1 <= k <= n and 0 <= c <= n, got n={n}, c={c}, k={k}"
        )
    subsets = math.comb(n, k)
    return (subsets - math.comb(n - c, k)) / subsets


def summarize(
    correct: Sequence[Sequence[bool]], majority_correct: Sequence[bool], shares: Sequence[float]
) -> dict[str, float | int | None]:
    """Scores over P prompts, under the names of the metrics of kind "eval".

    Args:
        correct: For each prompt, whether each of its samples is correct.
        majority_correct: For each prompt, whether the majority's answer is correct.
        shares: For each prompt, the majority's share of the votes.

    Returns:
        `pass1`: avg@k, the mean over prompts of the mean over samples.
        `pass1_se`: its standard error with prompts as clusters, because the samples of one prompt
            are not independent. None for a single prompt.
        `pass@2`, `pass@4`, ... up to the smallest group.
        `maj`: the part of the prompts whose majority is correct.
        `gap`: maj - pass1, what the vote knows beyond a sample.
        `vote_share`: the mean share.
        `coverage@share`, `maj@share` for each of SHARES: the part of the prompts whose majority has
            at least that share, and the accuracy of these majorities. None if there are none.
        `prompts`: P.
        `k`: the size of the smallest group.

    Raises:
        ValueError: No prompt, a prompt without samples, or arguments of different lengths.
    """
    _validate(correct, majority_correct, shares)
    n = [len(samples) for samples in correct]
    c = [sum(map(bool, samples)) for samples in correct]
    rates = [c_p / n_p for c_p, n_p in zip(c, n, strict=True)]
    scores: dict[str, float | int | None] = {"pass1": statistics.fmean(rates), "pass1_se": None}
    if len(rates) > 1:
        scores["pass1_se"] = statistics.stdev(rates) / math.sqrt(len(rates))
    k = 2
    while k <= min(n):
        scores[f"pass@{k}"] = statistics.fmean(
            pass_at_k(n_p, c_p, k) for n_p, c_p in zip(n, c, strict=True)
        )
        k *= 2
    maj = statistics.fmean(map(bool, majority_correct))
    scores |= {"maj": maj, "gap": maj - statistics.fmean(rates)}
    scores["vote_share"] = statistics.fmean(shares)
    for bar in SHARES:
        confident = [
            bool(is_correct)
            for is_correct, share in zip(majority_correct, shares, strict=True)
            if share >= bar
        ]
        scores[f"coverage@{bar:g}"] = len(confident) / len(shares)
        scores[f"maj@{bar:g}"] = statistics.fmean(confident) if confident else None
    return scores | {"prompts": len(correct), "k": min(n)}


def summarize_revisions(first: Sequence[bool], final: Sequence[bool]) -> dict[str, float | None]:
    """Scores of episodes that answer again, over their first completions.

    Args:
        first: Whether each first completion is correct.
        final: Whether the last answer that followed it is. It is the first one if none followed.

    Returns:
        `acc@first`, `acc@final`, `wrong_to_right` and `right_to_wrong`: fractions of all
        completions. acc@final - acc@first = wrong_to_right - right_to_wrong.
    """
    pairs = [(bool(before), bool(after)) for before, after in zip(first, final, strict=True)]
    return {
        "acc@first": statistics.fmean(before for before, _ in pairs),
        "acc@final": statistics.fmean(after for _, after in pairs),
        "wrong_to_right": statistics.fmean(pair == (False, True) for pair in pairs),
        "right_to_wrong": statistics.fmean(pair == (True, False) for pair in pairs),
    }


def summarize_verdicts(
    verdicts: Sequence[bool | None], correct: Sequence[bool]
) -> dict[str, float | None]:
    """Scores of own verdicts v on answers, of which c are correct.

    Args:
        verdicts: Whether the model accepts each answer. None: its reply is neither 1 nor 0.
        correct: Whether the answer is correct.

    Returns:
        `verdict_accuracy`: the mean of 1[v = c], 0 for None. None without verdicts.
        `verdict_no_answer`: the fraction of None. None without verdicts.
        `gv_gap`: the generation-verification gap, sum v c / sum v - mean c (Mind the Gap, arXiv
            2412.02674), None accepts nothing. None if the model accepts nothing.
    """
    if not verdicts:
        return dict.fromkeys(("verdict_accuracy", "verdict_no_answer", "gv_gap"))
    pairs = [(verdict, bool(right)) for verdict, right in zip(verdicts, correct, strict=True)]
    accepted = [right for verdict, right in pairs if verdict]
    gap = None
    if accepted:
        gap = statistics.fmean(accepted) - statistics.fmean(right for _, right in pairs)
    return {
        "verdict_accuracy": statistics.fmean(verdict == right for verdict, right in pairs),
        "verdict_no_answer": statistics.fmean(verdict is None for verdict, _ in pairs),
        "gv_gap": gap,
    }


def _validate(
    correct: Sequence[Sequence[bool]], majority_correct: Sequence[bool], shares: Sequence[float]
) -> None:
    if not correct:
        raise ValueError("summarize: expected at least one prompt, got none")
    if not len(correct) == len(majority_correct) == len(shares):
        raise ValueError(
            "summarize: expected correct, majority_correct and shares of one length, got "
            f"{len(correct)}, {len(majority_correct)} and {len(shares)}"
        )
    for prompt, samples in enumerate(correct):
        if not samples:
            raise ValueError(
                f"summarize: expected at least one sample per prompt, got none for prompt {prompt}"
            )
