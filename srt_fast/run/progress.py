"""Live progress of a run on the terminal, and the summary table at its end. Rich is imported here and in vote_table.py."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL = 10.0  # seconds between two lines where there is no terminal
_SHORT = {
    "pass1": "pass@1",
    "vote_share": "vote",
    "pseudo_reward": "reward",
    "tokens_per_second": "tok/s",
    "completion_tokens": "length",
    "label_accuracy": "labels",
    "grad_norm": "grad",
}


class RunProgress:
    """Progress of the phases of a run, one after the other.

        with RunProgress() as progress:
            with progress.phase("train", total=100, fields=["pass1", "vote_share", "tokens_per_second"]):
                progress.update(12, **metrics)  # shows the phase's fields, leaves out the rest
                progress.note("step 12: checkpoint written")

    On a terminal: a bar with step, time and time left, and one line of latest values below it, redrawn in place.
    Elsewhere (CI, a log file): a plain line about every ten seconds, and each phase's last. `quiet` prints nothing.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False):
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        # FORCE_COLOR makes rich call a CI log a terminal; redrawing in place needs a real one.
        self._animate = self._console.is_interactive and self._console.file.isatty() and not quiet
        self._live: Live | None = None
        self._phase: _Phase | None = None
        self._printed_at = float("-inf")
        self._printed_step: int | None = None

    def __enter__(self) -> RunProgress:
        if self._animate:
            # Standard output keeps its own way when it is a pipe: scripts read its last line.
            settings = {
                "refresh_per_second": 4,
                "transient": True,
                "redirect_stdout": sys.stdout.isatty(),
            }
            self._live = Live(Text(), console=self._console, **settings)
            self._live.start()
        return self

    def __exit__(self, *_exception) -> None:
        self._finish_phase()
        if self._live:
            self._live.stop()  # also shows the cursor again

    def phase(self, title: str, total: int | None, fields: Sequence[str]) -> contextlib.ExitStack:
        """Begin a phase of `total` steps (None: unknown). It ends with its `with` block, or as the next begins."""
        self._finish_phase()
        self._phase = _Phase(title, total, list(fields))
        self._printed_at, self._printed_step = float("-inf"), None
        if self._live:
            self._live.update(self._phase, refresh=True)
        ending = contextlib.ExitStack()
        ending.callback(self._finish_phase)
        return ending

    def update(self, step: int, **values: float | int | str | None) -> None:
        """`step` steps are done. Values outside the phase's fields are left out; one that is missing keeps its last."""
        phase = self._phase
        if phase is None:
            raise ValueError(
                "update: expected a phase to be under way, got none (call phase first)"
            )
        phase.advance(step, values)
        if not self._animate and time.monotonic() - self._printed_at >= PLAIN_INTERVAL:
            self._print(Text(phase.line()))
            self._printed_at, self._printed_step = time.monotonic(), step

    def note(self, message: str) -> None:
        """Print a message above the bar."""
        self._print(Text(message))

    def _finish_phase(self) -> None:
        """Leave the phase's last state standing above whatever comes next (nothing, if it never moved)."""
        phase, self._phase = self._phase, None
        if phase is None:
            return
        phase.finish()
        if self._live:
            self._live.update(Text())
        if phase.moved() and self._animate:
            self._print(phase)
        elif phase.moved() and phase.step != self._printed_step:
            self._print(Text(phase.line()))

    def _print(self, what: Text | _Phase) -> None:
        if not self._quiet:
            self._console.print(what, soft_wrap=isinstance(what, Text))


class _Phase:
    """One bar: where it stands, and how it looks."""

    def __init__(self, title: str, total: int | None, fields: list[str]):
        self.title, self.total, self.fields, self.step = title, total, fields, 0
        self._values: dict[str, float | int | str | None] = {}
        self._began = time.monotonic()
        self._first: tuple[int, float] | None = (
            None  # step and time of the first update: a resumed run begins late
        )
        self._last = self._began
        self._ended: float | None = None

    def moved(self) -> bool:
        return self._first is not None

    def advance(self, step: int, values: dict) -> None:
        self.step, self._last = step, time.monotonic()
        self._first = self._first or (step, self._last)
        self._values.update((name, value) for name, value in values.items() if name in self.fields)

    def finish(self) -> None:
        self._ended = time.monotonic()

    def elapsed(self) -> float:
        return (self._ended or time.monotonic()) - self._began

    def left(self) -> float | None:
        """Seconds left at the mean pace since the first update; None before the second."""
        if self.total is None or self._first is None or self.step <= self._first[0]:
            return None
        pace = (self._last - self._first[1]) / (self.step - self._first[0])
        return max(0.0, (self.total - self.step) * pace - (time.monotonic() - self._last))

    def values(self) -> str:
        shown = (
            (_SHORT.get(name, name.replace("_", " ")), self._values.get(name))
            for name in self.fields
        )
        return "  ".join(f"{name} {_number(value)}" for name, value in shown)

    def count(self) -> str:
        return f"{self.step}" if self.total is None else f"{self.step}/{self.total}"

    def line(self) -> str:
        left = "" if self._ended or self.total is None else f", {_clock(self.left())} left"
        return (
            f"{self.title} {self.count()}  {_clock(self.elapsed())}{left}  {self.values()}".rstrip()
        )

    def __rich__(self) -> Group:
        left = "" if self._ended or self.total is None else f"{_clock(self.left())} left"
        bar = ProgressBar(self.total, self.step, pulse=self.total is None and not self._ended)
        first = Table.grid(expand=True, padding=(0, 1))
        for ratio in (None, 1, None, None, None):
            first.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis")
        cells = map(Text, (self.count(), _clock(self.elapsed()), left))
        first.add_row(Text(self.title, style="bold"), bar, *cells)
        return Group(
            first, Text("  " + self.values(), style="cyan", no_wrap=True, overflow="ellipsis")
        )


def summary_table(title: str, rows: Sequence[tuple[str, float | None, float | None]]) -> None:
    """Print rows of (name, before, after), and the change, on standard output."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAVY)
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for name, before, after in rows:
        change = "-" if before is None or after is None else _number(after - before)
        change = change if change.startswith("-") else "+" + change
        table.add_row(Text(name), _number(before), _number(after), change)
    Console().print(table)


def _number(value: float | int | str | None) -> str:
    """Three significant places or so, never wide: 0.582, 12.3, 4,512, 1.0e-06."""
    if value is None or isinstance(value, str):
        return value or "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
