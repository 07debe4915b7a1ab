"""The votes of saved completions as a table. Answers are model output: no markup, no control characters, cut to a width."""

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

from srt_fast.vote.vote import Answer, GroupVote

ANSWERS, SPELLINGS = 5, 2  # of a group that are shown; the rest is counted
PIPE_WIDTH = 160


def vote_table(votes: list[GroupVote], limit: int, summary: str) -> None:
    """Print the first `limit` groups and the summary on standard output, in colour on a terminal; the rest is counted."""
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else PIPE_WIDTH)
    with console.capture() as printed:
        if limit:
            console.print(
                _table(
                    votes[:limit], any(vote.correct is not None for vote in votes), console.width
                )
            )
        if limit < len(votes):
            console.print(
                Text(f"{len(votes) - limit:,} more groups (--limit shows more, --out writes all)")
            )
        console.print(Text(summary), soft_wrap=not terminal)
    encoding = sys.stdout.encoding or "utf-8"
    for line in printed.get().encode(encoding, "replace").decode(encoding).splitlines():
        print(line.rstrip(), flush=True)


def _table(votes: list[GroupVote], with_gold: bool, width: int) -> Table:
    """Columns that leave the split at least 20 of a terminal's 80."""
    table, answer, group = (
        Table(box=box.SIMPLE_HEAVY, pad_edge=False, padding=(0, 1, 0, 0)),
        width // 8,
        width // 5,
    )
    table.add_column("group", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("majority", no_wrap=True)
    for name in ("share", "2nd"):
        table.add_column(name, justify="right", no_wrap=True)
    if with_gold:
        table.add_column("gold", no_wrap=True)
    table.add_column("split")
    for vote in votes:
        majority = (
            Text("no answer", style="dim")
            if vote.majority is None
            else _text(vote.majority, answer, "bold")
        )
        gold = [_gold(vote, answer)] if with_gold else []
        table.add_row(
            _middle_out(_label(vote.name), group),
            f"{vote.n:,}",
            majority,
            f"{vote.share:.3f}",
            f"{vote.runner_up:.3f}",
            *gold,
            _split(vote, width // 5),
        )
    return table


def _gold(vote: GroupVote, width: int) -> Text:
    if vote.correct is None:
        return Text("-", style="dim")
    return _text(vote.gold, width, "green" if vote.correct else "red")


class _Parts:
    """Texts with commas between them; a line ends between two of them only, where they fit one."""

    def __init__(self, parts: list[Text]):
        self._parts = [part + Text(",") for part in parts[:-1]] + parts[-1:]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widths = [part.cell_len for part in self._parts] or [0]
        return Measurement(
            min(max(widths), options.max_width),
            min(sum(widths) + len(widths) - 1, options.max_width),
        )

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
    answers = [answer for answer in vote.split if answer.form is not None]
    shown = (
        ANSWERS if len(answers) > ANSWERS + 1 else len(answers)
    )  # "1 others" would take as much room as its answer
    parts = [_answer(answer, width) for answer in answers[:shown]]
    if others := answers[shown:]:
        parts.append(
            _counted(
                Text(f"{len(others):,} others", style="dim"), sum(answer.count for answer in others)
            )
        )
    if silent := vote.n - vote.valid:
        parts.append(_counted(Text("no answer", style="dim"), silent))
    return _Parts(parts)


def _answer(answer: Answer, width: int) -> Text:
    """An answer with its most common other spellings, where there are any, and its count."""
    text, others = (
        _text(answer.form, width),
        [spelling for spelling, _ in answer.spellings if spelling != answer.form],
    )
    if len(answer.spellings) > 1:
        shown = [_text(spelling, width, "dim") for spelling in others[:SPELLINGS]]
        more = [Text("...", style="dim")] if len(others) > SPELLINGS else []
        text = text + Text(" (") + Text(", ").join(shown + more) + Text(")")
    return _counted(text, answer.count)


def _counted(text: Text, count: int) -> Text:
    times = "×" if (sys.stdout.encoding or "").lower().startswith("utf") else "x"
    return text + Text(f" {times}{count:,}")


def _label(name: Any) -> str:
    """A group's name: its text, a chat's last message, or a line's number."""
    while isinstance(name, list) and name and isinstance(name[-1], dict) and "content" in name[-1]:
        name = name[-1]["content"]
    return name if isinstance(name, str) else repr(name)


def _text(text: str, width: int, style: str = "") -> Text:
    """Model output as one line that moves no cursor, cut to a width."""
    shown = Text(_plain(text), style=style)
    shown.truncate(width, overflow="ellipsis")
    return shown


def _middle_out(text: str, width: int) -> Text:
    """Its beginning and its end: the prompts of one task often begin alike."""
    text = _plain(text)
    if cell_len(text) <= width:
        return Text(text)
    head = set_cell_size(text, width // 2)
    return Text(head + "…" + set_cell_size(text[::-1], width - width // 2 - 1)[::-1])


def _plain(text: str) -> str:
    text = " ".join(text.split())
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
