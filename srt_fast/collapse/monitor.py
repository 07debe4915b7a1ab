"""Collapse, seen before it happens: a step's signals compared with the run's own beginning, and one alarm with its causes.

Plain Python on numbers. Two kinds of signals: what the step has anyway (concentration of the answers, agreement, entropy, length,
repeated text), and a few held-out prompts that are sampled every monitor.every steps (held_out.py) and compared with the starting
model's votes, or with gold. docs/reward.md reports how early each cause is and how often it is wrong.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WINDOW = 5  # steps that are averaged, so that one odd batch is no alarm; the first so many are the beginning
LOOKS = 2  # looks at the held-out prompts that are averaged
WATCHED = (
    "top_answer_share",
    "answer_entropy",
    "unanimous",
    "vote_share",
    "entropy",
    "completion_tokens",
    "repetition",
)
"""Metrics of a step that are averaged."""


@dataclass(frozen=True)
class Cause:
    """A reason for the alarm."""

    strong: bool  # raises the alarm alone; of the others it takes two
    meaning: str
    holds: Callable[[Monitor], bool]


CAUSES: dict[str, Cause] = {
    "held_out": Cause(
        True,
        "the held-out score is more than 10 points, and twice its standard error, below its best",
        lambda m: m.fall() > 0.1,
    ),
    "constant_answer": Cause(
        True,
        "one answer is the majority of 20 points more of the prompts than at the beginning",
        lambda m: m.gain("top_answer_share") > 0.2,
    ),
    "divergence": Cause(
        False,
        "agreement among the samples has gained 20 points on the held-out score",
        lambda m: m.gain("vote_share") - m.gain("held_out") > 0.2,
    ),
    "few_answers": Cause(
        False,
        "the entropy of the majorities over prompts has lost a fifth",
        lambda m: m.ratio("answer_entropy") < 0.8,
    ),
    "saturated": Cause(
        False,
        "19 of 20 prompts are unanimous: next to nothing is left to learn",
        lambda m: m.now("unanimous") > 0.95,
    ),
    "entropy": Cause(
        False,
        "the entropy of a token is 1.5 times that of the beginning",
        lambda m: m.ratio("entropy") > 1.5,
    ),
    "kl": Cause(
        False,
        "more than 1 nat a token away from the starting model, on its own completions",
        lambda m: m.now("kl") > 1,
    ),
    "length": Cause(
        False,
        "completions are half or twice as long as at the beginning",
        lambda m: m.ratio("completion_tokens") < 0.5 or m.ratio("completion_tokens") > 2,
    ),
    "repetition": Cause(
        False,
        "20 points more of the text is repeated than at the beginning",
        lambda m: m.gain("repetition") > 0.2,
    ),
}


class Monitor:
    """Takes what a run shows (`observe`, `hold_out`) and says what is new (`judge`). `best_step`: the step with the best held-out
    score so far."""

    def __init__(self):
        self._recent: dict[str, deque[float]] = {}
        self._start: dict[str, float] = {}
        self._looks: list[list[float]] = []  # the held-out prompts' scores, the last times
        self._best: list[float] = []  # their mean at the best step
        self.best_step: int | None = None
        self.causes: list[str] = []
        self.alarmed = False

    def hold_out(self, step: int, scores: list[float], kl: float) -> bool:
        """Take the held-out prompts' scores, 0 to 1 each, and the KL to the starting model. True where they are the best so
        far: the mean of the last LOOKS is, and the last look by itself."""
        self._looks = [*self._looks, list(scores)][-LOOKS:]
        mean = [statistics.fmean(prompt) for prompt in zip(*self._looks, strict=True)]
        self._recent["held_out"], self._recent["kl"] = (
            deque([statistics.fmean(mean)], 1),
            deque([kl], 1),
        )
        self._start.setdefault("held_out", statistics.fmean(mean))
        better = self.best_step is None or min(
            statistics.fmean(mean), statistics.fmean(scores)
        ) > statistics.fmean(self._best)
        if better:
            self._best, self.best_step = mean, step
        return better

    def observe(self, values: Mapping[str, Any]) -> None:
        """Take a step's metrics; None and NaN are passed over."""
        for name in WATCHED:
            value = values.get(name)
            if value is not None and value == value:
                recent = self._recent.setdefault(name, deque(maxlen=WINDOW))
                recent.append(value)
                if len(recent) == WINDOW:
                    self._start.setdefault(name, statistics.fmean(recent))

    def judge(self) -> tuple[list[str], bool]:
        """The causes that are new since the last call, and whether the alarm is."""
        causes = [name for name, cause in CAUSES.items() if cause.holds(self)]
        alarm = len(causes) > 1 or any(CAUSES[name].strong for name in causes)
        new, raised = (
            [name for name in causes if name not in self.causes],
            alarm and not self.alarmed,
        )
        self.causes, self.alarmed = causes, alarm
        return new, raised

    def restart(self) -> None:
        """The best weights have been put back: what was seen since does not count. The beginning stays the run's."""
        self._recent.clear()
        self._looks, self.causes, self.alarmed = [], [], False

    def now(self, name: str) -> float:
        """The mean of the last steps; NaN, which is above and below no bar, before there are so many."""
        recent = self._recent.get(name)
        return statistics.fmean(recent) if recent and len(recent) == recent.maxlen else math.nan

    def gain(self, name: str) -> float:
        """How much more than at the beginning."""
        return self.now(name) - self._start.get(name, math.nan)

    def ratio(self, name: str) -> float:
        """How many times the beginning."""
        return self.now(name) / (self._start.get(name) or math.nan)

    def fall(self) -> float:
        """How far the held-out score is below its best, prompt by prompt; 0 where that is within two standard errors."""
        means = [statistics.fmean(prompt) for prompt in zip(*self._looks, strict=True)]
        falls = [best - now for best, now in zip(self._best, means, strict=False)]  # no looks: none
        if len(falls) < 2:
            return 0.0
        mean, error = statistics.fmean(falls), statistics.stdev(falls) / math.sqrt(len(falls))
        return mean if mean > 2 * error else 0.0

    def state_dict(self) -> dict[str, Any]:
        recent = {name: list(values) for name, values in self._recent.items()}
        return {**vars(self), "_recent": recent, "_start": dict(self._start)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        recent = {
            name: deque(values, 1 if name in ("held_out", "kl") else WINDOW)
            for name, values in state["_recent"].items()
        }
        vars(self).update(state, _recent=recent, _start=dict(state["_start"]))
