"""Rows of JSON: lines, one array of any size, or objects and arrays over several lines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, TextIO

from pydantic_core import from_json

from srt_fast.files import MAX_DEPTH, parse_json
from srt_fast.rows.json_document import read_document
from srt_fast.rows.place import Place, PlacedRow
from srt_fast.rows.text import bad_byte_error, find_bad_byte, preview

FIRST_CHARS = 1 << 20
"""A first line that begins with "[" and is longer is the beginning of one array."""


def read_json(name: str, text: TextIO) -> Iterator[PlacedRow]:
    """The values of a JSON text with their places.

    One value a line, if the first line is an object, or if it is an array and more lines follow.
    Otherwise the elements of arrays, and objects that go over several lines. Raises ValueError for
    what is no JSON.
    """
    head = _first_lines(text)
    values = [line for line in head if line.strip()]
    if not values:
        return iter(())
    is_array = values[0].lstrip().startswith("[")
    if _is_json(values[0]) and (len(values) > 1 or not is_array):
        return _read_lines(name, itertools.chain(head, text))
    return read_document(name, "".join(head), text, rows_of)


def rows_of(value: Any) -> list[Any]:
    """The rows in a value: those of a log of inspect or of a table {"0": {...}, "1": {...}}."""
    if not isinstance(value, dict):
        return [value]
    if "eval" in value and isinstance(value.get("samples"), list):
        return value["samples"]
    first_key = next(iter(value), "")
    if first_key.isdigit() and all(isinstance(row, dict) for row in value.values()):
        return list(value.values())
    return [value]


def _first_lines(text: TextIO) -> list[str]:
    """The lines up to the second that is not blank. A long array's first line is not read whole."""
    lines: list[str] = []
    filled = 0
    while filled < 2 and (line := text.readline(FIRST_CHARS)):
        if len(line) == FIRST_CHARS and not line.endswith("\n"):
            if filled == 0 and line.lstrip().startswith("["):
                return [*lines, line]
            line += text.readline()
        lines.append(line)
        filled += bool(line.strip())
    return lines


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _read_lines(name: str, lines: Iterator[str]) -> Iterator[PlacedRow]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        place = Place(name, "line", number)
        if (index := find_bad_byte(line)) is not None:
            raise bad_byte_error(place, line, index)
        try:
            value = _parse_fast(line)
        except ValueError as error:
            raise _line_error(place, line, error, lines) from error
        for row in rows_of(value):
            yield place, row


def _parse_fast(line: str) -> Any:
    """parse_json of a line, five times as fast for most lines.

    from_json refuses what is no JSON, and lone surrogates, which Python accepts. So Python has the
    last word. Its error is better, too.
    """
    if line.count("[") + line.count("{") < MAX_DEPTH:
        try:
            return from_json(line)
        except ValueError:
            pass
    return parse_json(line)


def _line_error(place: Place, line: str, error: ValueError, following: Iterator[str]) -> ValueError:
    line = line.strip()
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg}, column {error.colno}"
        is_last = not any(rest.strip() for rest in following)
        if is_last and (error.msg.startswith("Unterminated") or error.pos >= len(line)):
            reason += "; the file may be cut"
    return ValueError(f"{place}: expected a JSON object, got {preview(line)} ({reason})")
