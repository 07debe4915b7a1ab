"""A page of texts, tables and figures, as Markdown beside PNG files and as one HTML file.

A text is a paragraph, or a list of lines that begin with "- ". Texts and cells may hold `code` and
**bold** words.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from srt_fast.files import write_atomically
from srt_fast.run.curves import figure_svg
from srt_fast.run.page import html_text, page


@dataclass(frozen=True)
class Table:
    """A cell of None is a dash. A row may be shorter than the head."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def lines(self) -> list[list[str]]:
        """The cells of the head and of each row as texts."""
        lines = []
        for row in (self.head, *self.rows):
            cells = ["-" if cell is None else " ".join(str(cell).split()) for cell in row]
            lines.append(cells + [""] * (len(self.head) - len(cells)))
        return lines


@dataclass(frozen=True)
class Picture:
    """A figure. `draw` makes it anew, since a page shows it in two formats."""

    file: str
    description: str
    draw: Callable[[], Figure]


Block = str | Table | Picture


@dataclass(frozen=True)
class Document:
    """A page. Sections without blocks are left out."""

    title: str
    lead: str
    sections: dict[str, list[Block]]

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write NAME.md, NAME.html and the PNG files. Returns their paths."""
        paths = [folder / f"{name}.md", folder / f"{name}.html"]
        write_atomically(paths[0], self.markdown())
        write_atomically(paths[1], self.html())
        for blocks in self.sections.values():
            for block in blocks:
                if isinstance(block, Picture):
                    image = io.BytesIO()
                    block.draw().savefig(image, format="png")
                    paths.append(folder / block.file)
                    write_atomically(paths[-1], image.getvalue())
        return paths

    def markdown(self) -> str:
        parts = [f"# {self.title}", self.lead]
        for heading, blocks in self.sections.items():
            if blocks:
                parts += [f"## {heading}", *map(_block_markdown, blocks)]
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        sections = {
            html_text(heading): "".join(map(_block_html, blocks))
            for heading, blocks in self.sections.items()
            if blocks
        }
        return page(self.title, self.lead.replace("`", ""), sections)


def _block_markdown(block: Block) -> str:
    if isinstance(block, Picture):
        return f"![{block.description}]({block.file})"
    if isinstance(block, str):
        return block
    if not block.rows:
        return "Not run."
    head, *rows = [[cell.replace("|", "\\|") for cell in line] for line in block.lines()]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _block_html(block: Block) -> str:
    if isinstance(block, Picture):
        svg = figure_svg(block.draw, block.file)
        return f'<figure class="curves" aria-label="{html_text(block.description)}">{svg}</figure>'
    if isinstance(block, str):
        if block.startswith("- "):
            items = "".join(f"<li>{_inline(line[2:])}</li>" for line in block.splitlines())
            return f"<ul>{items}</ul>"
        return f"<p>{_inline(block)}</p>"
    if not block.rows:
        return "<p>Not run.</p>"
    head, *rows = block.lines()
    lines = [_line("th", head), *(_line("td", row) for row in rows)]
    return f'<table class="left">{"".join(lines)}</table>'


def _line(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in cells) + "</tr>"


def _inline(text: str) -> str:
    """HTML of a text: `code` and **bold**. All else is shown as it is."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", html_text(text))
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", marked)
