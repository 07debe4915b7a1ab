"""Rules of the alarm, on the looks that a run has logged. They show what each would have done.

Plain Python, no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from srt_fast.collapse.detector import FallDetector, FalseAlarmBound
from srt_fast.collapse.look import Look

Rows = Sequence[dict[str, Any]]

BEST_LOOK_FALL = 0.1
"""What the rule "best look" allows below the best score."""


def judge(rows: Rows) -> dict[str, int | None]:
    """Step of the first alarm by each rule of RULES, on rows of kind "monitor".

    A rule is left out if a row does not have its figures.
    """
    steps = {}
    for name, (needs, first_alarm) in RULES.items():
        if rows and all(need in row for need in needs for row in rows):
            steps[name] = first_alarm(rows)
    return steps


def _sequential(bound: FalseAlarmBound, rows: Rows) -> int | None:
    detector = FallDetector(bound)
    return next((row["step"] for row in rows if detector.observe(_look(row))), None)


def _best_look(rows: Rows) -> int | None:
    """10 points below the best of all looks, each the mean of two. The rule until November 2026.

    That rule also asked for two standard errors over the prompts, whose scores are not logged. With
    64 prompts x 4 samples they are mostly less than 10 points. Its looks had one seed.
    """
    best = None
    last: list[float] = []
    for row in rows:
        last = [*last, row["probe_score"]][-2:]
        mean = statistics.fmean(last)
        if best is None or min(mean, row["probe_score"]) > best:
            best = mean
        if mean < best - BEST_LOOK_FALL:
            return row["step"]
    return None


def _look(row: dict[str, Any]) -> Look:
    return Look(
        agreeing=(row["probe_agreeing_1"], row["probe_agreeing_2"]),
        samples=(row["probe_samples_1"], row["probe_samples_2"]),
    )


COUNTS = ("probe_agreeing_1", "probe_samples_1", "probe_agreeing_2", "probe_samples_2")
RULES: dict[str, tuple[tuple[str, ...], Callable[[Rows], int | None]]] = {
    "10,000 looks": (COUNTS, lambda rows: _sequential(FalseAlarmBound(looks=10_000), rows)),
    "chance of 1 %": (COUNTS, lambda rows: _sequential(FalseAlarmBound(chance=0.01), rows)),
    "best look": (("probe_score",), _best_look),
}
"""The sequential test with each of its bounds, and the rule before it: what a row must have, and
the step of the first alarm."""
