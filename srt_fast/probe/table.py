"""Prints a probe as tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from srt_fast.errors import printable
from srt_fast.probe import text
from srt_fast.probe.result import Probe

PIPE_WIDTH = 120


def print_probe(probe: Probe) -> None:
    """Print a probe on standard output."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print(Text(printable(text.title(probe)), style="bold"))
    console.print(Text(text.lead(probe)))
    for heading, rows in text.figure_tables(probe).items():
        console.print(_table((heading, *text.FIGURE_HEAD[1:]), rows, numbers=(1, 2)))
    if probe.gold:
        head = ("Majorities by share", "prompts", "right", "standard error")
        console.print(_table(head, text.share_rows(probe.gold), numbers=(1, 2, 3)))
    console.print(_table(("Advice", "", "because"), text.advice_rows(probe), numbers=()))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]) -> Table:
    """numbers: the columns of numbers, which are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False)
    for place, name in enumerate(head):
        is_number = place in numbers
        table.add_column(
            Text(name), justify="right" if is_number else "left", no_wrap=is_number or place == 0
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
