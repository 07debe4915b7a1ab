"""Sees a collapse: compares a step's signals with those at the start, and raises an alarm.

Plain Python on numbers. Two kinds of signals. The step has the first kind anyway: concentration of
the answers, agreement, entropy, length, repeated text. The second kind comes from a few held-out
prompts, which are sampled every monitor.every steps (probe.py) and compared with the starting
model's votes, or with gold. docs/rewards.md reports how early each cause is and how often it is
wrong.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WINDOW = 5
"""Steps of a mean, so that one odd batch raises no alarm. The first WINDOW steps are the start."""
PROBE_WINDOW = 2
"""Measurements of the probe of a mean."""
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
class Cause:
    """A reason for the alarm."""

    is_strong: bool  # raises the alarm alone; of the others it takes two
    meaning: str
    holds: Callable[[Monitor], bool]


CAUSES: dict[str, Cause] = {
    "probe_score": Cause(
        True,
        "the probe's score is more than 10 points, and twice its standard error, below its best",
        lambda monitor: monitor.fall() > 0.1,
    ),
    "constant_answer": Cause(
        True,
        "one answer is the majority of 20 points more of the prompts than at the start",
        lambda monitor: monitor.gain("top_answer_share") > 0.2,
    ),
    "divergence": Cause(
        False,
        "agreement among the samples has gained 20 points on the probe's score",
        lambda monitor: monitor.gain("vote_share") - monitor.gain("probe_score") > 0.2,
    ),
    "few_answers": Cause(
        False,
        "the entropy of the majorities over prompts has lost a fifth",
        lambda monitor: monitor.ratio("answer_entropy") < 0.8,
    ),
    "saturated": Cause(
        False,
        "19 of 20 prompts are unanimous: almost nothing is left to learn",
        lambda monitor: monitor.mean("unanimous") > 0.95,
    ),
    "entropy": Cause(
        False,
        "the entropy of a token is 1.5 times that at the start",
        lambda monitor: monitor.ratio("entropy") > 1.5,
    ),
    "kl": Cause(
        False,
        "the policy is more than 1 nat a token away from the starting model, on its completions",
        lambda monitor: monitor.mean("probe_kl") > 1,
    ),
    "length": Cause(
        False,
        "completions are half or twice as long as at the start",
        lambda monitor: (
            monitor.ratio("completion_tokens") < 0.5 or monitor.ratio("completion_tokens") > 2
        ),
    ),
    "repetition": Cause(
        False,
        "20 points more of the text is repeated than at the start",
        lambda monitor: monitor.gain("repetition") > 0.2,
    ),
}


@dataclass(frozen=True)
class Verdict:
    """What the monitor says after a step."""

    new_causes: list[str]  # causes that did not hold at the last check
    raises_alarm: bool  # True where the alarm is new


class Monitor:
    """Takes what a run measures (`observe`, `observe_probe`) and says what is new (`check`).

    best_step: the step with the best probe score until now.
    """

    def __init__(self) -> None:
        self._recent: dict[str, deque[float]] = {}
        self._start: dict[str, float] = {}
        self._probe_scores: list[list[float]] = []  # scores of each prompt, the last measurements
        self._best_scores: list[float] = []  # mean score of each prompt at the best step
        self.best_step: int | None = None
        self.causes: list[str] = []
        self.is_alarmed = False

    def observe_probe(self, step: int, scores: list[float], kl: float) -> bool:
        """Take the probe's scores, 0 to 1 for each prompt, and the KL to the starting model.

        Returns whether this step is the best until now: the mean of the last PROBE_WINDOW
        measurements is the best one, and so is the last measurement alone.
        """
        self._probe_scores = [*self._probe_scores, list(scores)][-PROBE_WINDOW:]
        prompt_means = self._prompt_means()
        mean = statistics.fmean(prompt_means)
        self._recent["probe_score"] = deque([mean], 1)
        self._recent["probe_kl"] = deque([kl], 1)
        self._start.setdefault("probe_score", mean)
        is_best = self.best_step is None or (
            min(mean, statistics.fmean(scores)) > statistics.fmean(self._best_scores)
        )
        if is_best:
            self._best_scores = prompt_means
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
        causes = [name for name, cause in CAUSES.items() if cause.holds(self)]
        is_alarmed = len(causes) > 1 or any(CAUSES[name].is_strong for name in causes)
        verdict = Verdict(
            new_causes=[name for name in causes if name not in self.causes],
            raises_alarm=is_alarmed and not self.is_alarmed,
        )
        self.causes = causes
        self.is_alarmed = is_alarmed
        return verdict

    def restart(self) -> None:
        """Drop what was observed, after a rollback. The start and the best step stay."""
        self._recent.clear()
        self._probe_scores = []
        self.causes = []
        self.is_alarmed = False

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

    def fall(self) -> float:
        """How far the probe's score is below its best. 0 within two standard errors of 0."""
        if not self._probe_scores:
            return 0.0
        pairs = zip(self._best_scores, self._prompt_means(), strict=True)
        falls = [best - current for best, current in pairs]
        if len(falls) < 2:
            return 0.0
        mean = statistics.fmean(falls)
        error = statistics.stdev(falls) / math.sqrt(len(falls))
        return mean if mean > 2 * error else 0.0

    def _prompt_means(self) -> list[float]:
        """The mean score of each prompt over the last measurements."""
        return [statistics.fmean(scores) for scores in zip(*self._probe_scores, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "recent": {name: list(values) for name, values in self._recent.items()},
            "start": dict(self._start),
            "probe_scores": self._probe_scores,
            "best_scores": self._best_scores,
            "best_step": self.best_step,
            "causes": self.causes,
            "is_alarmed": self.is_alarmed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent = {
            name: deque(values, WINDOW if name in STEP_SIGNALS else 1)
            for name, values in state["recent"].items()
        }
        self._start = dict(state["start"])
        self._probe_scores = state["probe_scores"]
        self._best_scores = state["best_scores"]
        self.best_step = state["best_step"]
        self.causes = state["causes"]
        self.is_alarmed = state["is_alarmed"]
