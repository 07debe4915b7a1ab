"""How late the alarm comes, for a size and spacing of looks. A calculation, no measurement."""

from __future__ import annotations

import math

from srt_fast.collapse.detector import (
    DROPS,
    LEAST_LEVEL,
    PATIENCE,
    WINDOW,
    FalseAlarmBound,
    log_likelihood_ratio,
    tolerance,
)
from srt_fast.collapse.look import Look


def detection_delay(
    samples: int, fall: float, *, reference: float, bound: FalseAlarmBound, look: int = 1
) -> float:
    """Looks from a sudden fall to the alarm, the first fallen look included.

    Wald's approximation: log(J / (alpha w_t)) / max_j E[min(log L_j, cap)], at least PATIENCE, with
    the names of detector.py and J fallen levels. It overestimates a little, because the J wealths
    and the starts of several looks add up.

    Args:
        samples: prompts x samples of a look. The reference is of WINDOW looks.
        fall: how far the score falls below the reference, 0 to 1.
        reference: the score before, 0 to 1.
        look: the number of the look at which the score falls. It matters with a bound of the
            chance, whose weights become smaller.

    Returns inf for a fall that the test does not see: one that is near the tolerance or smaller.
    """
    if not 0 < fall < reference <= 1:
        raise ValueError(f"fall: expected more than 0, below the reference {reference}, got {fall}")
    healthy = reference - tolerance(reference, WINDOW * samples)
    levels = {max(reference - drop, LEAST_LEVEL) for drop in DROPS}
    growth = max(
        (
            _mean_growth(samples, reference - fall, level, healthy, bound.cap(look))
            for level in levels
            if level < healthy
        ),
        default=0.0,
    )
    if growth <= 0:
        return math.inf
    needed = math.log(len(DROPS) * bound.threshold / bound.weight(look))
    return max(needed / growth, PATIENCE)


def _mean_growth(samples: int, score: float, fallen: float, healthy: float, cap: float) -> float:
    """E[min(log L, cap)] for a look of `samples` samples, each of which agrees with `score`."""
    total = 0.0
    for agreeing in range(samples + 1):
        look = Look((agreeing, 0), (samples, 0))
        growth = min(log_likelihood_ratio(look, fallen, healthy), cap)
        total += _binomial(agreeing, samples, score) * growth
    return total


def _binomial(agreeing: int, samples: int, score: float) -> float:
    """The chance of so many agreeing samples."""
    log_ways = math.lgamma(samples + 1)
    log_ways -= math.lgamma(agreeing + 1) + math.lgamma(samples - agreeing + 1)
    others = samples - agreeing
    return math.exp(log_ways + agreeing * math.log(score) + others * math.log1p(-score))


def delay_table(every: int = 5, reference: float = 0.8) -> str:
    """The table of docs/alarm.md, in Markdown: looks and steps from a sudden fall to the alarm."""
    falls = (0.1, 0.15, 0.2, 0.4)
    head = [f"{100 * fall:.0f} points" for fall in falls]
    rows = [
        ["prompts x samples", f"completions a step, `every {every}`", *head],
        ["---"] * (len(falls) + 2),
    ]
    bound = FalseAlarmBound(looks=10_000)
    for prompts, samples in ((32, 4), (64, 4), (128, 4), (256, 4), (512, 4)):
        delays = []
        for fall in falls:
            looks = detection_delay(prompts * samples, fall, reference=reference, bound=bound)
            delays.append(f"{math.ceil(looks)} ({math.ceil(looks) * every})")
        completions = prompts * samples / every
        rows.append([f"{prompts} x {samples}", f"{completions:.0f}", *delays])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
