"""The order in which a run meets its training problems."""

from __future__ import annotations

import random

from srt_fast.tasks.base import Task
from srt_fast.types import Problem


class PromptStream:
    """Endless training problems of a task. Their order depends on the seed only.

    A finite task is shuffled anew for every epoch. An endless one is read from a position that
    differs between seeds.
    """

    def __init__(self, task: Task, seed: int) -> None:
        if task.train_size == 0:
            raise ValueError("task: expected one with training problems, got train_size 0")
        self.task = task
        self.seed = seed
        self.position = 0
        self._epoch = -1
        self._order: list[int] = []  # of the epoch

    def next(self, count: int) -> list[Problem]:
        """The next `count` problems."""
        start = self.position
        self.position += count
        return [self.task.train(self._index(position)) for position in range(start, self.position)]

    def state_dict(self) -> dict[str, int]:
        """What load_state_dict needs to continue with the next problem."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]

    def _index(self, position: int) -> int:
        size = self.task.train_size
        if size is None:
            return random.Random(f"stream/{self.seed}").randrange(2**30) + position
        epoch, place = divmod(position, size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = list(range(size))
            random.Random(f"stream/{self.seed}/{epoch}").shuffle(self._order)
        return self._order[place]
