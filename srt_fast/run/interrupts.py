"""SIGINT and SIGTERM as an exception at the next safe point, so that a run saves before it leaves."""

from __future__ import annotations

import signal
import threading


class RunInterrupted(Exception):
    """The run was asked to stop. `signal` is the signal's number."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class InterruptHandler:
    """Context manager. `check()` raises RunInterrupted once a signal has arrived; a second signal acts at once.

    Outside the main thread Python allows no signal handlers, and then signals do what they did before.
    """

    def __init__(self):
        self._arrived: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self):
        in_main = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM) if in_main else ():
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number, _frame):
        self._arrived = number
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def check(self) -> None:
        if self._arrived is not None:
            raise RunInterrupted(self._arrived)
