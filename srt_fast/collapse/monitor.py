"""Sees a collapse: raises the alarm, and shows what else is unusual.

Plain Python on numbers. The alarm comes from the collapse probe's score alone, by the sequential
test of detector.py, whose false alarms are bounded. Everything else is a warning: information that
raises no alarm. No bound of that kind is known for it, because healthy training moves these
figures too, by an amount that depends on the task. docs/alarm.md has the guarantee.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from srt_fast.collapse.detector import FallDetector, FalseAlarmBound
from srt_fast.collapse.look import Measurement

WINDOW = 5
"""Steps of a mean, so that one odd batch raises no alarm. The first WINDOW steps are the start."""
PROBE_WINDOW = 2
"""Looks of the score that chooses the best step."""
STEP_SIGNALS = (
    "top_answer_share",
    "answer_entropy",
    "unanimous",
    "vote_share",
    "entropy",
    "completion_tokens",
    "repetition",
)
"""Metrics of a step that the monitor averages."""


@dataclass(frozen=True)
class Sign:
    """Something unusual, which a warning tells. It raises no alarm."""

    meaning: str
    holds: Callable[[Monitor], bool]


SIGNS: dict[str, Sign] = {
    "constant_answer": Sign(
        "one answer is the majority of 20 points more of the prompts than at the start",
        lambda monitor: monitor.gain("top_answer_share") > 0.2,
    ),
    "divergence": Sign(
        "agreement among the samples has gained 20 points on the probe's score",
        lambda monitor: monitor.gain("vote_share") - monitor.gain("probe_score") > 0.2,
    ),
    "few_answers": Sign(
        "the entropy of the majorities over prompts has lost a fifth",
        lambda monitor: monitor.ratio("answer_entropy") < 0.8,
    ),
    "saturated": Sign(
        "19 of 20 prompts are unanimous: almost nothing is left to learn",
        lambda monitor: monitor.mean("unanimous") > 0.95,
    ),
    "entropy": Sign(
        "the entropy of a token is 1.5 times that at the start",
        lambda monitor: monitor.ratio("entropy") > 1.5,
    ),
    "kl": Sign(
        "the policy is more than 1 nat a token away from the starting model, on its completions",
        lambda monitor: monitor.mean("probe_kl") > 1,
    ),
    "length": Sign(
        "completions are half or twice as long as at the start",
        lambda monitor: (
            monitor.ratio("completion_tokens") < 0.5 or monitor.ratio("completion_tokens") > 2
        ),
    ),
    "repetition": Sign(
        "20 points more of the text is repeated than at the start",
        lambda monitor: monitor.gain("repetition") > 0.2,
    ),
}


@dataclass(frozen=True)
class Verdict:
    """What the monitor says after a step."""

    new_signs: list[str]  # signs that did not hold at the last check
    raises_alarm: bool  # True where the alarm is new


class Monitor:
    """Takes what a run measures (`observe`, `observe_probe`) and says what is new (`check`).

    best_step: the step with the best probe score until now. signs: those that hold.
    """

    def __init__(self, bound: FalseAlarmBound) -> None:
        self.detector = FallDetector(bound)
        self._recent: dict[str, deque[float]] = {}
        self._start: dict[str, float] = {}
        self._scores: list[float] = []  # of the last looks
        self._best_score = -math.inf
        self.best_step: int | None = None
        self.signs: list[str] = []
        self._raises_alarm = False

    def observe_probe(self, step: int, measurement: Measurement) -> bool:
        """Take a measurement of the probe.

        Returns whether this step is the best until now: the mean of the last PROBE_WINDOW scores is
        the best one, and so is the last score alone.
        """
        self._raises_alarm = self.detector.observe(measurement.look)
        score = measurement.look.score
        self._scores = [*self._scores, score][-PROBE_WINDOW:]
        mean = statistics.fmean(self._scores)
        for name, value in (("probe_score", mean), ("probe_kl", measurement.kl)):
            self._recent[name] = deque([value], 1)
        self._start.setdefault("probe_score", mean)
        is_best = min(mean, score) > self._best_score
        if is_best:
            self._best_score = mean
            self.best_step = step
        return is_best

    def observe(self, values: Mapping[str, Any]) -> None:
        """Take a step's metrics. None and NaN are left out."""
        for name in STEP_SIGNALS:
            value = values.get(name)
            if value is None or math.isnan(value):
                continue
            recent = self._recent.setdefault(name, deque(maxlen=WINDOW))
            recent.append(value)
            if len(recent) == WINDOW:
                self._start.setdefault(name, statistics.fmean(recent))

    def check(self) -> Verdict:
        """What is new since the last check."""
        signs = [name for name, sign in SIGNS.items() if sign.holds(self)]
        verdict = Verdict(
            new_signs=[name for name in signs if name not in self.signs],
            raises_alarm=self._raises_alarm,
        )
        self.signs = signs
        self._raises_alarm = False
        return verdict

    def restart(self) -> None:
        """Drop what was observed, after a rollback. Start, best step and reference stay."""
        self.detector.restart()
        self._recent.clear()
        self._scores = []
        self.signs = []

    def mean(self, name: str) -> float:
        """The mean of the last steps. NaN, which compares False, before there are enough steps."""
        recent = self._recent.get(name)
        return statistics.fmean(recent) if recent and len(recent) == recent.maxlen else math.nan

    def gain(self, name: str) -> float:
        """The mean of the last steps minus that at the start."""
        return self.mean(name) - self._start.get(name, math.nan)

    def ratio(self, name: str) -> float:
        """The mean of the last steps over that at the start."""
        return self.mean(name) / (self._start.get(name) or math.nan)

    def state_dict(self) -> dict[str, Any]:
        return {
            "detector": self.detector.state_dict(),
            "recent": {name: list(values) for name, values in self._recent.items()},
            "start": dict(self._start),
            "scores": list(self._scores),
            "best_score": self._best_score,
            "best_step": self.best_step,
            "signs": list(self.signs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self._recent = {
            name: deque(values, WINDOW if name in STEP_SIGNALS else 1)
            for name, values in state["recent"].items()
        }
        self._start = dict(state["start"])
        self._scores = list(state["scores"])
        self._best_score = state["best_score"]
        self.best_step = state["best_step"]
        self.signs = list(state["signs"])
