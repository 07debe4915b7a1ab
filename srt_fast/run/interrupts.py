"""SIGINT and SIGTERM become an exception at the next safe point, so that a run saves first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class RunInterrupted(Exception):
    """The run was asked to stop. `signal` is the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class InterruptHandler:
    """Context manager. `check()` raises RunInterrupted if a signal has arrived.

    A second signal acts at once, as without this handler. Python allows signal handlers in the main
    thread only. In other threads signals do what they did before.
    """

    def __init__(self) -> None:
        self._number: int | None = None
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

    def check(self) -> None:
        """Raise RunInterrupted if a signal has arrived."""
        if self._number is not None:
            raise RunInterrupted(self._number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
