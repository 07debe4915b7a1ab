"""What the samples of a probe say about the vote, with standard errors.

P prompts with K samples each. The samples of a prompt are independent, so votes of disjoint samples
are too. The standard error of a mean is over prompts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from srt_fast.probe.ballots import Ballot, block_votes

SHARES = (0.25, 0.5, 0.75)
"""Borders between the rows of GoldFigures.by_share. Unanimous prompts have a row of their own."""


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its standard error.

    None: there is one prompt, or all have the same value, so the spread is unknown.
    """

    value: float
    error: float | None


@dataclass(frozen=True, kw_only=True)
class VoteFigures:
    """What can be said without labels."""

    share: Estimate  # the majority's share of the votes
    clear: Estimate  # fraction of prompts whose halves elect the same answer
    top_answer: float  # largest fraction of prompts with one and the same majority
    accuracy_bound: float  # votes of K // 2 samples are right on at most this fraction of prompts
    repeats: dict[int, Estimate]  # how often two votes of so many samples elect the same answer
    mixed: dict[int, Estimate]  # fraction of groups of so many samples that have a gradient


@dataclass(frozen=True, kw_only=True)
class ShareRow:
    """The majorities whose share is from `low` on and below `high`. Both 1: unanimous prompts."""

    low: float
    high: float
    prompts: int
    accuracy: Estimate | None  # None: no prompt


@dataclass(frozen=True, kw_only=True)
class GoldFigures:
    """What the prompts with a gold answer say."""

    prompts: int
    pass1: Estimate  # accuracy of a sample
    maj: Estimate  # accuracy of the majority of K
    gain: Estimate  # maj - pass1
    clear_accuracy: Estimate | None  # of the majorities that are clear. None: there are none
    unclear_accuracy: Estimate | None  # of the other majorities
    by_share: list[ShareRow]
    effect: Estimate  # of the vote's reward on pass@1, see `covariance`
    gold_effect: Estimate  # of a reward by gold answers
    relative_effect: float | None  # effect / gold_effect. None: gold_effect is 0
    chance: float | None  # that `effect` is above 0. None: `effect` has no error


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0
    error = deviation / math.sqrt(len(values)) if deviation else None
    return Estimate(statistics.fmean(values), error)


def vote_figures(keys: Tensor, ballots: Sequence[Ballot]) -> VoteFigures:
    """The figures of the vote. keys [P, K] int64 of the ballots.

    accuracy_bound: let q be the chance that a half's vote is right, and s that both halves elect
    the same answer. One half is right and the other is not with a chance of at most 1 - s, equally
    often the first and the second. So q <= s + (1 - s) / 2, if a prompt has one right answer.
    Nothing bounds q from below: a model that repeats one mistake agrees with itself.
    """
    samples = keys.shape[1]
    majorities = [ballot.majority for ballot in ballots if ballot.majority]
    clear = estimate([ballot.is_clear for ballot in ballots])
    return VoteFigures(
        share=estimate([ballot.share for ballot in ballots]),
        clear=clear,
        top_answer=max(map(majorities.count, set(majorities)), default=0) / len(ballots),
        accuracy_bound=(1 + clear.value) / 2,
        repeats={size: _repeats(keys, size) for size in sizes(samples // 2, 2)},
        mixed={
            size: estimate([mixed_chance(ballot.keys, size) for ballot in ballots])
            for size in sizes(samples, 4)
        },
    )


def gold_figures(ballots: Sequence[Ballot]) -> GoldFigures | None:
    """The figures of the prompts with a gold answer. None: there are none."""
    known = [ballot for ballot in ballots if ballot.correct is not None]
    if not known:
        return None
    pass1 = [statistics.fmean(ballot.correct or ()) for ballot in known]
    maj = [ballot.is_right(ballot.majority) for ballot in known]
    effect = estimate([_vote_effect(ballot) for ballot in known])
    gold_effect = estimate(
        [covariance(ballot.correct or [], ballot.correct or []) for ballot in known]
    )
    return GoldFigures(
        prompts=len(known),
        pass1=estimate(pass1),
        maj=estimate(maj),
        gain=estimate([right - rate for right, rate in zip(maj, pass1, strict=True)]),
        clear_accuracy=_accuracy([ballot for ballot in known if ballot.is_clear]),
        unclear_accuracy=_accuracy([ballot for ballot in known if not ballot.is_clear]),
        by_share=_by_share(known),
        effect=effect,
        gold_effect=gold_effect,
        relative_effect=effect.value / gold_effect.value if gold_effect.value else None,
        chance=chance_above_zero(effect, len(known)),
    )


def covariance(rewards: Sequence[bool], correct: Sequence[bool]) -> float:
    """Unbiased covariance of reward and correctness over at least two samples of a prompt.

    It is the first-order change of the prompt's pass@1 if the policy moves the probability p_a of
    each answer a at the rate p_a (r_a - mean r): the natural policy gradient (Kakade, 2001), and
    the replicator equation. It leaves out what one prompt's step does to other prompts.
    """
    n = len(rewards)
    both = sum(r and c for r, c in zip(rewards, correct, strict=True))
    return (both - sum(rewards) * sum(correct) / n) / (n - 1)


def chance_above_zero(mean: Estimate, count: int) -> float | None:
    """The chance that a mean of `count` values is above 0, by Student's t of its error.

    None without an error. By Wallace's transformation to a normal distribution (Ann. Math. Stat.
    30, 1959), whose error is below 0.01 from two values on.
    """
    if mean.error is None:
        return None
    t, degrees = mean.value / mean.error, count - 1
    size = (8 * degrees + 1) / (8 * degrees + 3) * math.sqrt(degrees * math.log1p(t * t / degrees))
    return statistics.NormalDist().cdf(math.copysign(size, t))


def mixed_chance(keys: Sequence[int], size: int) -> float:
    """The chance that a group of `size` of these samples has a gradient, by the vote's reward.

    It has none if all of its answers are the same, or if it has none at all. The group is drawn
    without replacement, which makes the estimate unbiased. 1 <= size <= len(keys).
    """
    alike = sum(math.comb(keys.count(key), size) for key in set(keys))
    return 1 - alike / math.comb(len(keys), size)


def sizes(largest: int, smallest: int) -> list[int]:
    """The powers of two from `smallest` to `largest`."""
    return [2**power for power in range(1, 16) if smallest <= 2**power <= largest]


def _repeats(keys: Tensor, size: int) -> Estimate:
    """How often two votes of `size` samples of one prompt elect the same answer.

    The mean over neighbouring pairs of disjoint blocks. A vote without an answer repeats nothing.
    """
    pairs = [list(pairwise(votes)) for votes in block_votes(keys, size)]
    return estimate(
        [statistics.fmean(first == second != 0 for first, second in row) for row in pairs]
    )


def _vote_effect(ballot: Ballot) -> float:
    """Covariance of reward and correctness where the other half of the samples votes.

    So no sample votes on its own label, as with a teacher. The mean of both directions.
    """
    assert ballot.correct is not None
    half = len(ballot.keys) // 2
    parts = []
    for label, samples in zip(ballot.halves, (slice(half, 2 * half), slice(half)), strict=True):
        rewards = [key == label != 0 for key in ballot.keys[samples]]
        parts.append(covariance(rewards, ballot.correct[samples]))
    return statistics.fmean(parts)


def _accuracy(ballots: Sequence[Ballot]) -> Estimate | None:
    if not ballots:
        return None
    return estimate([ballot.is_right(ballot.majority) for ballot in ballots])


def _by_share(ballots: Sequence[Ballot]) -> list[ShareRow]:
    rows = []
    for low, high in pairwise((0.0, *SHARES, 1.0, math.inf)):
        members = [ballot for ballot in ballots if low <= ballot.share < high]
        rows.append(
            ShareRow(
                low=low, high=min(high, 1.0), prompts=len(members), accuracy=_accuracy(members)
            )
        )
    return rows
