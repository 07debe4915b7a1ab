"""A sequential test for a fall of the probe's score, with a bound of its false alarms.

After Shin, Ramdas, Rinaldo, "E-detectors" (arXiv 2203.03532). Plain Python on numbers.

    m = reference - max(TOLERANCE, 3 s)              what a healthy policy has at least
    q_j = reference - DROPS[j]                       fallen levels
    log L_j = k log(q_j / m) + (n - k) log((1 - q_j) / (1 - m))         k of n samples agree
    W_j = (W_j + w_t) exp(min(log L_j, cap))         alarm where mean(W) >= 1 / alpha

`monitor.false_alarm_looks` N: alpha = 1 / N and w_t = 1. Between two false alarms there are at
least N looks on average. `monitor.false_alarm_chance` alpha: w_t = 1 / (t (t + 1)). The chance of
any false alarm, ever, is at most alpha.

Why it holds: a sample y has the factor 1 + l (m - y) with l = (m - q) / (m (1 - m)). Given the
weights samples are independent. So the mean of L is prod(1 + l (m - mu_i)), which is at most
(1 + l (m - mean mu_i))^n by the inequality of the means, and at most 1 wherever the policy's true
score, mean mu_i, is at least m: whatever the prompts, and whatever path the policy takes. A cap
only lowers L. Then the sum over start looks s of prod L_s..L_t is an e-detector for w = 1, and an
e-process (Ville's inequality) for weights that sum to 1.

The reference is the best score of a window of looks. The best of many is a lucky one. So one half
of each prompt's samples chooses a window, and the other half measures it. Each half chooses once,
and the reference r is the mean of the two measurements, with the standard error s =
sqrt(r (1 - r) / samples). A bound that holds for the true score needs one for r: m is three of its
standard errors lower, if that is more than TOLERANCE. That is so for looks of less than 113 samples
(of less than 450 until there are eight).

Worked example: reference 0.80, so m = 0.75. Looks of 256 samples with 154 agreeing (0.60) have
log L = 13.3 for q = 0.60, cut to cap = log(10000) / 3 = 3.07. The
fourth of them raises the alarm.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from srt_fast.collapse.look import Look
from srt_fast.config import MonitorConfig

TOLERANCE = 0.05
"""A score that is this much below the reference is still healthy."""
REFERENCE_ERRORS = 3.0
"""Standard errors of the reference that are healthy too."""
DROPS = (0.1, 0.2, 0.4)
"""Falls below the reference that the test bets on."""
WINDOW = 8
"""Looks of the reference."""
LEAST_LEVEL = 0.01
"""Least fallen level. A reference of at most this much plus the tolerance cannot be seen to
fall."""
FALSE_ALARM_LOOKS = 10_000
"""Looks between false alarms if the settings name no bound."""
PATIENCE = 3
"""A fall takes at least so many looks to raise the alarm: one bad look proves little."""


@dataclass(frozen=True, kw_only=True)
class FalseAlarmBound:
    """How rare false alarms are. Exactly one of the two is set."""

    looks: int | None = None
    """Least mean number of looks between false alarms."""
    chance: float | None = None
    """Largest chance of any false alarm, over any number of looks."""

    @classmethod
    def of(cls, settings: MonitorConfig) -> FalseAlarmBound:
        """What the settings ask for."""
        if settings.false_alarm_chance is not None:
            return cls(chance=settings.false_alarm_chance)
        return cls(looks=settings.false_alarm_looks or FALSE_ALARM_LOOKS)

    def __post_init__(self) -> None:
        assert (self.looks is None) != (self.chance is None)

    @property
    def threshold(self) -> float:
        """The mean wealth that raises the alarm."""
        if self.looks is not None:
            return float(self.looks)
        assert self.chance is not None
        return 1 / self.chance

    def weight(self, look: int) -> float:
        """What each wealth gains before its `look`-th factor. look: 1, 2, ..."""
        return 1.0 if self.looks is not None else 1 / (look * (look + 1))

    def cap(self, look: int) -> float:
        """The largest log-factor of a look."""
        return math.log(self.threshold / self.weight(look)) / PATIENCE


@dataclass(kw_only=True)
class DetectorState:
    """All that the test remembers. A checkpoint has it."""

    tested: int = 0
    """Looks that were tested. A restart does not reset it: the chance is one for all restarts."""
    wealths: list[float] = field(default_factory=lambda: [0.0] * len(DROPS))
    recent: list[Look] = field(default_factory=list)
    """The last looks, at most WINDOW, since the last restart, alarm or recovery."""
    best: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """The score of the best window by each half of the samples."""
    measured: list[float] = field(default_factory=list)
    """The score of these windows by the other half. Empty before two looks."""
    reference_looks: int = 0
    """Looks of these windows."""
    reference_samples: int = 0
    """Samples of a window, of both halves."""
    is_alarmed: bool = False

    @property
    def reference(self) -> float | None:
        """What looks are compared with. None before two looks."""
        return sum(self.measured) / 2 if self.measured else None

    @property
    def healthy(self) -> float | None:
        """The least healthy score, m. None before two looks."""
        if self.reference is None:
            return None
        return self.reference - tolerance(self.reference, self.reference_samples)


class FallDetector:
    """Takes looks, and says which one raises the alarm.

    An alarm lasts until a whole window of later looks is back at the least healthy score.
    Then the test begins again.
    """

    def __init__(self, bound: FalseAlarmBound) -> None:
        self._bound = bound
        self.state = DetectorState()

    def observe(self, look: Look) -> bool:
        """Take a look. Returns whether it raises an alarm."""
        state = self.state
        if state.is_alarmed:
            self._remember(look)
            self._end_alarm_after_recovery()
            return False
        if self._test(look):
            state.is_alarmed = True
            state.recent = []
            return True
        self._remember(look)
        self._renew_reference()
        return False

    def restart(self) -> None:
        """Forget the looks and the evidence: the policy is another one. The reference stays."""
        self.state = replace(self.state, recent=[], wealths=[0.0] * len(DROPS), is_alarmed=False)

    def _test(self, look: Look) -> bool:
        state = self.state
        reference, healthy = state.reference, state.healthy
        if reference is None or healthy is None:
            return False
        state.tested += 1
        weight = self._bound.weight(state.tested)
        cap = self._bound.cap(state.tested)
        for index, drop in enumerate(DROPS):
            fallen = max(reference - drop, LEAST_LEVEL)
            if fallen < healthy:
                growth = min(log_likelihood_ratio(look, fallen, healthy), cap)
                state.wealths[index] = (state.wealths[index] + weight) * math.exp(growth)
        return sum(state.wealths) / len(DROPS) >= self._bound.threshold

    def _remember(self, look: Look) -> None:
        self.state.recent = [*self.state.recent, look][-WINDOW:]

    def _renew_reference(self) -> None:
        """Let each half take the recent looks if they are its best window until now.

        A shorter window, of a run's first looks, gives way to the first whole one.
        """
        state = self.state
        looks = len(state.recent)
        if looks < 2 or looks < state.reference_looks:
            return
        scores = [_half_score(state.recent, half) for half in (0, 1)]
        if not state.measured or looks == WINDOW > state.reference_looks:
            state.best, state.measured = scores, scores[::-1]
        for half, score in enumerate(scores):
            if score > state.best[half]:
                state.best[half] = score
                state.measured[half] = scores[1 - half]
        state.reference_looks = looks
        state.reference_samples = sum(sum(look.samples) for look in state.recent)

    def _end_alarm_after_recovery(self) -> None:
        recent, healthy = self.state.recent, self.state.healthy
        assert healthy is not None
        if len(recent) == WINDOW and sum(look.score for look in recent) / WINDOW >= healthy:
            self.restart()

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = DetectorState(**state)
        self.state.recent = [
            Look(agreeing=tuple(look["agreeing"]), samples=tuple(look["samples"]))
            for look in state["recent"]
        ]


def tolerance(reference: float, samples: int) -> float:
    """How far below a reference, measured on so many samples, a score is still healthy.

    A reference of 0 or 1 has the standard error of one with one other sample. 0 samples are those
    of a checkpoint that does not say how many there were.
    """
    if not samples:
        return TOLERANCE
    spread = max(reference * (1 - reference), 1 / samples)
    return max(TOLERANCE, REFERENCE_ERRORS * math.sqrt(spread / samples))


def log_likelihood_ratio(look: Look, fallen: float, healthy: float) -> float:
    """log of how much likelier the look is with the score `fallen` than with `healthy`.

    Both are between 0 and 1, without the ends.
    """
    agreeing = sum(look.agreeing)
    others = sum(look.samples) - agreeing
    return agreeing * math.log(fallen / healthy) + others * math.log((1 - fallen) / (1 - healthy))


def _half_score(looks: list[Look], half: int) -> float:
    agreeing = sum(look.agreeing[half] for look in looks)
    return agreeing / sum(look.samples[half] for look in looks)
