"""Looks of the collapse probe, drawn from a seeded generator: the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterable

from srt_fast.collapse.detector import FallDetector
from srt_fast.collapse.look import Look

PROMPTS, SAMPLES = 64, 4


def draw_look(rng: random.Random, rates: list[float]) -> Look:
    """A look at prompts whose samples agree with these chances."""
    halves = [
        sum(rng.random() < rate for rate in rates for _ in range(SAMPLES // 2)) for _ in range(2)
    ]
    samples = len(rates) * SAMPLES // 2
    return Look((halves[0], halves[1]), (samples, samples))


def spread(score: float, prompts: int = PROMPTS) -> list[float]:
    """Different chances with this mean: half of the prompts as far above it as the others below."""
    width = min(score, 1 - score) * 0.9
    return [score + width, score - width] * (prompts // 2)


def first_alarm(detector: FallDetector, looks: Iterable[Look]) -> int | None:
    """The number of the look that raises the alarm, from 0."""
    return next((number for number, look in enumerate(looks) if detector.observe(look)), None)
