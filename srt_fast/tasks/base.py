"""What a task is to the rest of the trainer."""

from __future__ import annotations

from typing import Protocol

from srt_fast.types import Problem


class Task(Protocol):
    """A source of prompts. Indexing is pure: the same index gives the same problem in every process and run."""

    train_size: int | None  # number of training problems; None: endless
    has_gold: bool  # whether the held-out problems carry gold answers
    train_has_gold: bool  # whether the training problems do

    def train(self, index: int) -> Problem:
        """Training problem `index` (0 <= index < train_size). Its prompt is in no held-out problem."""

    def held_out(self, count: int) -> list[Problem]:
        """Up to `count` held-out problems, always the same ones."""

    def correct(self, answer: str | None, problem: Problem) -> bool:
        """Whether an answer (as read from a completion; None: no answer) agrees with the problem's gold answer."""
