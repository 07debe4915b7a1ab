"""What the trainer needs from a task."""

from __future__ import annotations

from typing import Protocol

from srt_fast.types import Problem


class Task(Protocol):
    """A source of prompts. An index gives the same problem in every process and run."""

    train_size: int | None  # number of training problems; None: endless
    has_gold: bool  # whether all held-out problems have gold answers
    train_has_gold: bool  # whether all training problems have them

    def train(self, index: int, /) -> Problem:
        """Training problem `index`, 0 <= index < train_size. No held-out problem has its prompt."""
        ...

    def held_out(self, count: int, /) -> list[Problem]:
        """Up to `count` held-out problems, always the same ones."""
        ...

    def correct(self, answer: str | None, problem: Problem, /) -> bool:
        """Whether an answer agrees with the problem's gold answer. None: no answer was read."""
        ...
