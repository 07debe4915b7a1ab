"""The order in which a run meets its training problems."""

from __future__ import annotations

import random

from srt_fast.tasks.base import Task
from srt_fast.types import Problem


class PromptStream:
    """Endless training problems of a task, in an order that depends on the seed only; resumes from one number.

    A finite set is permuted anew for every epoch; an endless one is read from a place that differs between seeds.
    """

    def __init__(self, task: Task, seed: int):
        if task.train_size == 0:
            raise ValueError(
                "prompt stream: expected a task with training problems, got train_size 0"
            )
        self.task = task
        self.seed = seed
        self.position = 0
        self._epoch, self._order = (
            -1,
            [],
        )  # the permutation of one epoch, made when it is first needed

    def next(self, count: int) -> list[Problem]:
        """The next `count` problems."""
        start, self.position = self.position, self.position + count
        return [self.task.train(self._index(position)) for position in range(start, self.position)]

    def _index(self, position: int) -> int:
        size = self.task.train_size
        if size is None:
            return random.Random(f"stream/{self.seed}").randrange(2**30) + position
        epoch, place = divmod(position, size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(size))
            random.Random(f"stream/{self.seed}/{epoch}").shuffle(self._order)
        return self._order[place]

    def state_dict(self) -> dict[str, int]:
        """What load_state_dict needs to go on with the very next problem."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
