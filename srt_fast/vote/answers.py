"""Answers of many texts, in their order. Other processes read them if the texts are many."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from srt_kernels.answers.extract import read_answer

FEW = 20_000
"""Texts that are read here. Reading more pays for the start of processes."""

CHUNK = 2_000
"""Texts that a process reads at a time."""

MAX_PROCESSES = 4
"""More would wait for the rows."""


class AnswerQueue:
    """Gives `receive(owner, answer)` the answer of each text, in the order of `add`.

    rule: where an answer is (read_answer). An error in `receive` or in a process is raised by `add`
    or `finish`.
    """

    def __init__(self, rule: str, receive: Callable[[Any, str | None], None]) -> None:
        self._rule = rule
        self._receive = receive
        self._count = 0
        self._owners: deque[Any] = deque()  # of the texts without an answer so far
        self._texts: list[str] = []
        self._pending: deque[Future[list[str | None]]] = deque()
        self._executor: ProcessPoolExecutor | None = None
        self._processes = min((os.cpu_count() or 1) - 1, MAX_PROCESSES)

    def add(self, owner: Any, texts: Iterable[str]) -> None:
        if self._count < FEW or not self._processes:
            for text in texts:
                self._count += 1
                self._receive(owner, read_answer(text, self._rule))
            return
        for text in texts:
            self._texts.append(text)
            self._owners.append(owner)
        if len(self._texts) >= CHUNK:
            self._submit()

    def finish(self) -> None:
        """Waits for all answers."""
        if self._texts:
            self._submit()
        while self._pending:
            self._take()
        self.close()

    def close(self) -> None:
        """Ends the processes. What they have not read is lost."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def _submit(self) -> None:
        if self._executor is None:
            # Forking a process that has threads, as pyarrow starts, may hang.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._processes, mp_context=context)
        self._pending.append(self._executor.submit(_read_answers, self._texts, self._rule))
        self._texts = []
        if len(self._pending) > 2 * self._processes:
            self._take()

    def _take(self) -> None:
        answers = self._pending.popleft().result()
        owners = [self._owners.popleft() for _ in range(len(answers))]
        for owner, answer in zip(owners, answers, strict=True):
            self._receive(owner, answer)


def _read_answers(texts: list[str], rule: str) -> list[str | None]:
    return [read_answer(text, rule) for text in texts]
