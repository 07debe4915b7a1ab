"""Live progress of a run on the terminal, and the summary table at its end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from srt_fast.errors import printable

PLAIN_INTERVAL = 10.0
"""Seconds between two lines where there is no terminal."""

SHORT_NAMES = {
    "pass1": "pass@1",
    "vote_share": "vote",
    "pseudo_reward": "reward",
    "tokens_per_second": "tok/s",
    "completion_tokens": "length",
    "label_accuracy": "labels",
    "grad_norm": "grad",
    "train_mfu": "MFU",
    "limit_share": "limit",
}

Value = float | int | str | None


class RunProgress:
    """Progress of the phases of a run, one after the other.

        with RunProgress() as progress:
            with progress.phase("train", total=100, fields=["pass1", "tokens_per_second"]):
                progress.update(12, **metrics)  # shows the phase's fields only
                progress.note("step 12: checkpoint written")

    On a terminal: a bar with step, time and time left, and a line of latest values below it. Both
    are redrawn in place. Elsewhere (CI, a log file): a plain line about every ten seconds, and the
    last one of each phase. `quiet` prints nothing.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        # With FORCE_COLOR rich takes a CI log for a terminal. Redrawing in place needs a real one.
        is_terminal = self._console.is_interactive and self._console.file.isatty()
        self._animate = is_terminal and not quiet
        self._live: Live | None = None
        self._phase: _Phase | None = None
        self._printed_at = float("-inf")
        self._printed_step: int | None = None

    def __enter__(self) -> RunProgress:
        if self._animate:
            self._live = Live(
                Text(),
                console=self._console,
                refresh_per_second=4,
                transient=True,
                # A piped standard output stays apart from the bar: scripts read its last line.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._finish_phase()
        if self._live:
            self._live.stop()  # shows the cursor again, too

    def phase(self, title: str, total: int | None, fields: Sequence[str]) -> contextlib.ExitStack:
        """Begin a phase of `total` steps (None: unknown).

        The phase ends with its `with` block, or when the next phase begins.
        """
        self._finish_phase()
        self._phase = _Phase(title, total, list(fields))
        self._printed_at = float("-inf")
        self._printed_step = None
        if self._live:
            self._live.update(self._phase, refresh=True)
        stack = contextlib.ExitStack()
        stack.callback(self._finish_phase)
        return stack

    def update(self, step: int, **values: Value) -> None:
        """Show the number of finished steps, and the values of the phase's fields.

        A field without a new value keeps its last one. Raises ValueError outside a phase.
        """
        phase = self._phase
        if phase is None:
            raise ValueError("update: expected a phase to be under way, got none")
        phase.advance(step, values)
        if not self._animate and time.monotonic() - self._printed_at >= PLAIN_INTERVAL:
            self._print_line(phase.line())
            self._printed_at = time.monotonic()
            self._printed_step = step

    def note(self, message: str) -> None:
        """Print a message above the bar."""
        self._print_line(message)

    def _finish_phase(self) -> None:
        """Print the phase's last state. Prints nothing for a phase without updates."""
        phase = self._phase
        self._phase = None
        if phase is None:
            return
        phase.finish()
        if self._live:
            self._live.update(Text())
        if not phase.has_updates():
            return
        if self._animate:
            self._console.print(phase)
        elif phase.step != self._printed_step:
            self._print_line(phase.line())

    def _print_line(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(printable(text)), soft_wrap=True)


class _Phase:
    """One bar: its state, and how it looks."""

    def __init__(self, title: str, total: int | None, fields: list[str]) -> None:
        self.title = title
        self.total = total
        self.fields = fields
        self.step = 0
        self._values: dict[str, Value] = {}
        self._start_time = time.monotonic()
        self._first_update: tuple[int, float] | None = None  # step, time; a resumed run begins late
        self._last_time = self._start_time
        self._end_time: float | None = None

    def has_updates(self) -> bool:
        return self._first_update is not None

    def advance(self, step: int, values: Mapping[str, Value]) -> None:
        self.step = step
        self._last_time = time.monotonic()
        self._first_update = self._first_update or (step, self._last_time)
        self._values |= {name: value for name, value in values.items() if name in self.fields}

    def finish(self) -> None:
        self._end_time = time.monotonic()

    def line(self) -> str:
        """The state in one plain line."""
        time_left = self._time_left()
        times = _clock(self._elapsed())
        if time_left:
            times += f", {time_left}"
        return f"{self.title} {self._count()}  {times}  {self._values_text()}".rstrip()

    def __rich__(self) -> Group:
        is_pulsing = self.total is None and not self._end_time
        bar = ProgressBar(self.total, self.step, pulse=is_pulsing)
        first_line = Table.grid(expand=True, padding=(0, 1))
        for ratio in (None, 1, None, None, None):  # the bar takes the free width
            first_line.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis")
        first_line.add_row(
            Text(self.title, style="bold"),
            bar,
            Text(self._count()),
            Text(_clock(self._elapsed())),
            Text(self._time_left()),
        )
        values = Text("  " + self._values_text(), style="cyan", no_wrap=True, overflow="ellipsis")
        return Group(first_line, values)

    def _count(self) -> str:
        return f"{self.step}" if self.total is None else f"{self.step}/{self.total}"

    def _elapsed(self) -> float:
        return (self._end_time or time.monotonic()) - self._start_time

    def _time_left(self) -> str:
        if self._end_time or self.total is None:
            return ""
        return f"{_clock(self._seconds_left(self.total))} left"

    def _seconds_left(self, total: int) -> float | None:
        """Seconds left at the mean pace since the first update. None before the second update."""
        if self._first_update is None:
            return None
        first_step, first_time = self._first_update
        if self.step <= first_step:
            return None
        seconds_per_step = (self._last_time - first_time) / (self.step - first_step)
        seconds_since_update = time.monotonic() - self._last_time
        return max(0.0, (total - self.step) * seconds_per_step - seconds_since_update)

    def _values_text(self) -> str:
        parts = []
        for name in self.fields:
            short_name = SHORT_NAMES.get(name, name.replace("_", " "))
            parts.append(f"{short_name} {_number(self._values.get(name))}")
        return "  ".join(parts)


def summary_table(title: str, rows: Sequence[tuple[str, float | None, float | None]]) -> None:
    """Print rows of (name, before, after), and the change, on standard output."""
    table = Table(title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAVY)
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for name, start, end in rows:
        change = "-" if start is None or end is None else _number(end - start)
        if not change.startswith("-"):
            change = "+" + change
        table.add_row(Text(name), _number(start), _number(end), change)
    Console().print(table)


def _number(value: Value) -> str:
    """About three significant digits, never wide: 0.582, 12.3, 4,512, 1.0e-06."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return printable(value) or "-"
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
