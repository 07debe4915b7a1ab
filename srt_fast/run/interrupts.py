"""SIGINT and SIGTERM become an exception at the next safe point, so that a run saves first."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class RunInterrupted(Exception):
    """The run was asked to stop. `signal` is the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number

    def __reduce__(self) -> tuple[type[RunInterrupted], tuple[int]]:
        return RunInterrupted, (self.signal,)  # pickle would pass the signal's name


class InterruptHandler:
    """Context manager. `check()` raises RunInterrupted if a signal has arrived.

    A second signal acts at once, as without this handler. Python allows signal handlers in the main
    thread only. In other threads signals do what they did before.

    repeat_seconds: a second signal this soon is a repetition of the first. torchrun passes on a
    Ctrl-C that its processes receive from the terminal too.
    """

    def __init__(self, *, repeat_seconds: float = 0.0) -> None:
        self._repeat_seconds = repeat_seconds
        self._number: int | None = None
        self._first_at = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> InterruptHandler:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    @property
    def has_signal(self) -> bool:
        return self._number is not None

    def check(self) -> None:
        """Raise RunInterrupted if a signal has arrived."""
        if self._number is not None:
            raise RunInterrupted(self._number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._number is None:
            self._number = number
            self._first_at = time.monotonic()
            if not self._repeat_seconds:
                self._restore()
        elif time.monotonic() - self._first_at > self._repeat_seconds:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
