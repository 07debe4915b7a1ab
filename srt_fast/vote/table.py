"""Prints the votes of saved completions as a table.

Answers are model output. They are printed without markup, with escapes for control characters,
truncated to a width.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from srt_fast.errors import printable
from srt_fast.rows.chat import content, is_chat, is_parts
from srt_fast.vote.vote import Answer, GroupVote

MAX_ANSWERS = 5  # of a group; the others are counted
MAX_SPELLINGS = 2  # of an answer; the others become dots
PIPE_WIDTH = 160


def print_votes(votes: list[GroupVote], hidden: int, summary: str) -> None:
    """Prints groups, the number of others (`hidden`) and the summary on standard output.

    A terminal gets colours.
    """
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else PIPE_WIDTH)
    with console.capture() as capture:
        if votes:
            has_gold = any(vote.correct is not None for vote in votes)
            console.print(_table(votes, has_gold, console.width))
        if hidden:
            console.print(Text(f"{hidden:,} more groups (--limit shows more, --out writes all)"))
        console.print(Text(printable(summary)), soft_wrap=not is_terminal)
    encoding = sys.stdout.encoding or "utf-8"
    for line in capture.get().encode(encoding, "replace").decode(encoding).splitlines():
        print(line.rstrip(), flush=True)


def _table(votes: list[GroupVote], has_gold: bool, width: int) -> Table:
    """The widths of its columns leave the split at least 20 of a terminal's 80."""
    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("group", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("majority", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("2nd", justify="right", no_wrap=True)
    if has_gold:
        table.add_column("gold", no_wrap=True)
    table.add_column("split")
    for vote in votes:
        gold = [_gold(vote, width // 8)] if has_gold else []
        table.add_row(
            _shorten_middle(_label(vote.name), width // 5),
            f"{vote.n:,}",
            _majority(vote, width // 8),
            f"{vote.share:.3f}",
            f"{vote.runner_up:.3f}",
            *gold,
            _split(vote, width // 5),
        )
    return table


def _majority(vote: GroupVote, width: int) -> Text:
    if vote.majority is None:
        return Text("no answer", style="dim")
    return _text(vote.majority, width, "bold")


def _gold(vote: GroupVote, width: int) -> Text:
    if vote.gold is None:
        return Text("-", style="dim")
    return _text(vote.gold, width, "green" if vote.correct else "red")


class _Parts:
    """Texts with commas between them. A line ends after a comma. Only a longer text is broken."""

    def __init__(self, parts: list[Text]):
        self._parts = [part + Text(",") for part in parts[:-1]] + parts[-1:]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widths = [part.cell_len for part in self._parts] or [0]
        one_line = sum(widths) + len(widths) - 1
        return Measurement(min(max(widths), options.max_width), min(one_line, options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line = Text(overflow="fold")
        for part in self._parts:
            if line and line.cell_len + 1 + part.cell_len > options.max_width:
                yield line
                line = Text(overflow="fold")
            line = line + Text(" ") + part if line else line + part
        yield line


def _split(vote: GroupVote, width: int) -> _Parts:
    r"""1/2 (0.5, \frac12) x20, 3 x8, 7 others x9, no answer x4"""
    answers = vote.answers
    # "1 others" would take as much room as its answer.
    limit = MAX_ANSWERS if len(answers) > MAX_ANSWERS + 1 else len(answers)
    parts = [_answer(answer, width) for answer in answers[:limit]]
    others = answers[limit:]
    if others:
        text = Text(f"{len(others):,} others", style="dim")
        parts.append(_with_count(text, sum(answer.count for answer in others)))
    without_answer = vote.n - vote.valid
    if without_answer:
        parts.append(_with_count(Text("no answer", style="dim"), without_answer))
    return _Parts(parts)


def _answer(answer: Answer, width: int) -> Text:
    """An answer with its most common other spellings, if there are any, and its count."""
    assert answer.form is not None
    text = _text(answer.form, width)
    if len(answer.spellings) > 1:
        others = [spelling for spelling, _ in answer.spellings if spelling != answer.form]
        spellings = [_text(spelling, width, "dim") for spelling in others[:MAX_SPELLINGS]]
        if len(others) > MAX_SPELLINGS:
            spellings.append(Text("...", style="dim"))
        text = text + Text(" (") + Text(", ").join(spellings) + Text(")")
    return _with_count(text, answer.count)


def _with_count(text: Text, count: int) -> Text:
    times = "×" if (sys.stdout.encoding or "").lower().startswith("utf") else "x"
    return text + Text(f" {times}{count:,}")


def _label(name: Any) -> str:
    """A group's name: its text, the last message of a chat, or the number of a row."""
    if is_chat(name):
        name = content(name[-1])
    if is_parts(name):
        name = " ".join(str(part.get("text", "")) for part in name)
    if isinstance(name, list):
        return ", ".join(_label(member) for member in name)
    return name if isinstance(name, str) else repr(name)


def _text(text: str, width: int, style: str = "") -> Text:
    """Model output as one line that moves no cursor, truncated to a width."""
    line = Text(_one_line(text), style=style)
    line.truncate(width, overflow="ellipsis")
    return line


def _shorten_middle(text: str, width: int) -> Text:
    """The beginning and the end of a text. The prompts of a task often begin alike."""
    text = _one_line(text)
    if cell_len(text) <= width:
        return Text(text)
    head = set_cell_size(text, width // 2)
    tail = set_cell_size(text[::-1], width - width // 2 - 1)[::-1]
    return Text(head + "…" + tail)


def _one_line(text: str) -> str:
    """The text as one line."""
    return printable(" ".join(text.split()))
