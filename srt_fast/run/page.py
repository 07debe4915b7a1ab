"""The HTML of a run's report: page, style and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from srt_fast.errors import printable


def page(title: str, lead: str, sections: Mapping[str, str]) -> str:
    """One HTML page without scripts. `sections` has the HTML under each heading."""
    body = "".join(
        f"<section><h2>{heading}</h2>{content}</section>" for heading, content in sections.items()
    )
    return _PAGE.format(title=html_text(title), lead=html_text(lead), style=_STYLE, body=body)


def html_text(value: Any) -> str:
    """The text of a value for HTML: no markup, and escapes for control characters."""
    return escape(printable(value))


def table(head: Iterable[Any], body: Iterable[Iterable[Any]], style: str) -> str:
    """A table. Escapes its cells. `style` is a class of the page's style: "scores" or "left"."""
    lines = [_table_line("th", head), *(_table_line("td", cells) for cells in body)]
    return f'<table class="{style}">{"".join(lines)}</table>'


def _table_line(tag: str, cells: Iterable[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html_text(cell)}</{tag}>" for cell in cells) + "</tr>"


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 76rem; }
body { overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; }
table { border-collapse: collapse; }
td, th { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); }
td, th { text-align: left; vertical-align: top; font-variant-numeric: tabular-nums; }
tr:empty { display: none; }
.scores td + td, .scores th + th { text-align: right; }
.scores tr:nth-child(2) { font-weight: bold; }
section { overflow-x: auto; }
.left td:last-child { overflow-wrap: anywhere; }
.curves { display: grid; gap: 1rem; }
.curves { grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.curves svg, .bar svg { width: 100%; height: auto; }
.bar { max-width: 36rem; }
pre { margin: 0; max-height: 14rem; overflow: auto; font-size: .875rem; }
pre { white-space: pre-wrap; unicode-bidi: isolate; }
.prompt { border: 1px solid var(--line); border-radius: .5rem; margin: .75rem 0; overflow: hidden; }
.prompt > pre { background: var(--soft); padding: .5rem .75rem; font-weight: bold; }
.completion { padding: .5rem .75rem; border-top: 1px solid var(--line); }
.turn { margin: .5rem 0 0 1rem; padding-left: .75rem; border-left: 2px solid var(--line); }
.badge { display: inline-block; border: 1px solid; border-radius: 1rem; }
.badge { padding: 0 .6rem; margin-right: .5rem; font-size: .8rem; }
.majority { color: #3b82c4; }
.correct { color: #2a9d74; }
.wrong { color: #d1603d; }
@media (max-width: 30rem) { table { font-size: .875rem; } td, th { padding-right: .5rem; } }
summary { font-weight: bold; cursor: pointer; margin-top: .5rem; }
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1><p>{lead}</p>{body}</body></html>
"""
