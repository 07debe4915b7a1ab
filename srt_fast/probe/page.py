"""Writes a probe as one HTML page."""

from __future__ import annotations

from pathlib import Path

from srt_fast.files import write_atomically
from srt_fast.probe import text
from srt_fast.probe.result import Probe, Row
from srt_fast.run.page import html_text, page, table

MAX_PROMPTS = 50
"""Prompts that the page lists."""
MAX_CHARACTERS = 200
"""Characters of a prompt or an answer that the page shows."""


def write_page(file: Path, probe: Probe) -> None:
    """Write the page. Prompts and answers are shown as text."""
    sections = {"Advice": table(("", "", "because"), text.advice_rows(probe), "left")}
    for heading, rows in text.figure_tables(probe).items():
        sections[heading] = table(text.FIGURE_HEAD, rows, "left")
    if probe.gold:
        head = ("share", "prompts", "right", "standard error")
        sections["Majorities by share"] = table(head, text.share_rows(probe.gold), "left")
    sections["Prompts"] = _prompts(probe.rows)
    write_atomically(file, page(text.title(probe), text.lead(probe), sections))


def _prompts(rows: list[Row]) -> str:
    """The prompts with the largest shares first."""
    ordered = sorted(rows, key=lambda row: -row.share)
    shown = ordered[:MAX_PROMPTS]
    body = [
        (
            _short(row.prompt),
            "no answer" if row.majority is None else _short(row.majority),
            f"{row.share:.2f}",
            "yes" if row.clear else "no",
            "-" if row.gold is None else _short(row.gold),
            "-" if row.pass1 is None else f"{row.pass1:.2f}",
            {None: "-", True: "right", False: "wrong"}[row.majority_correct],
        )
        for row in shown
    ]
    head = ("prompt", "majority", "share", "clear", "gold", "samples right", "majority is")
    note = f"{len(shown):,} of {len(rows):,} prompts, the largest shares first."
    return f"<p>{html_text(note)}</p>{table(head, body, 'left')}"


def _short(value: str) -> str:
    return value if len(value) <= MAX_CHARACTERS else value[: MAX_CHARACTERS - 3] + "..."
