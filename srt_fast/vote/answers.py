"""Answers of many texts, in their order. Other processes help if the texts are many."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from srt_fast.vote.saved import ReadAnswer
from srt_kernels.answers.canonical import canonical_bytes, hash_bytes
from srt_kernels.answers.extract import read_answer
from srt_kernels.answers.utf8 import to_bytes, to_text

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
        self._workers = Workers()

    def add(self, owner: Any, texts: Iterable[str]) -> None:
        if self._reads_alone:
            for text in texts:
                self._count += 1
                self._receive(owner, read_answer(text, self._rule))
            return
        for text in texts:
            self._texts.append(text)
            self._owners.append(owner)
        if len(self._texts) >= CHUNK:
            self._submit()
            self._take(self._workers.done())

    def finish(self) -> None:
        """Waits for all answers."""
        if self._texts:
            self._submit()
        self._take(self._workers.all())

    def with_forms(self, answers: list[str | None]) -> list[ReadAnswer]:
        """The answers with their keys and forms. Called after `finish`."""
        if self._reads_alone:
            return _with_forms(answers)
        for start in range(0, len(answers), CHUNK):
            self._workers.submit(_with_forms, answers[start : start + CHUNK])
        return [answer for chunk in self._workers.all() for answer in chunk]

    def close(self) -> None:
        """Ends the processes. What they have not read is lost."""
        self._workers.close()

    @property
    def _reads_alone(self) -> bool:
        return self._count < FEW or not self._workers.count

    def _submit(self) -> None:
        self._workers.submit(_read_answers, self._texts, self._rule)
        self._texts = []

    def _take(self, chunks: Iterable[list[str | None]]) -> None:
        for answers in chunks:
            for answer in answers:
                self._receive(self._owners.popleft(), answer)


class Workers:
    """Calls functions in other processes, and here while those are busy. Keeps their order."""

    def __init__(self) -> None:
        self.count = min((os.cpu_count() or 1) - 1, MAX_PROCESSES)
        self._pending: deque[Future] = deque()
        self._executor: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        if self._executor is None:
            # Forking a process that has threads, as pyarrow starts, may hang.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.count, mp_context=context)
        if sum(not future.done() for future in self._pending) < 2 * self.count:
            self._pending.append(self._executor.submit(function, *arguments))
            return
        here: Future = Future()
        here.set_result(function(*arguments))
        self._pending.append(here)

    def done(self) -> Iterator[Any]:
        """The results up to the first call that is not done."""
        while self._pending and self._pending[0].done():
            yield self._pending.popleft().result()

    def all(self) -> Iterator[Any]:
        """All results."""
        while self._pending:
            yield self._pending.popleft().result()

    def close(self) -> None:
        """Ends the processes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


def _read_answers(texts: list[str], rule: str) -> list[str | None]:
    return [read_answer(text, rule) for text in texts]


def _with_forms(answers: list[str | None]) -> list[ReadAnswer]:
    return list(map(with_form, answers))


def with_form(text: str | None) -> ReadAnswer:
    """answer_key and canonical_answer of an answer. Most of their work is the same."""
    form = None if text is None else canonical_bytes(to_bytes(text))
    if form is None:
        return ReadAnswer(text, 0, None)
    return ReadAnswer(text, hash_bytes(form), to_text(form))
