"""Values of a JSON text that is no list of lines, one in memory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

from srt_fast.files import MAX_DEPTH, is_deeper
from srt_fast.rows.place import Place, PlacedRow
from srt_fast.rows.text import bad_byte_error, find_bad_byte, preview

READ_CHARS = 1 << 20
_SPACES = re.compile(r"[ \t\n\r]*")
_LONGEST_WORD = 64
"""A number or name that ends this near to what was read may go on after it."""


def read_document(
    name: str, head: str, text: TextIO, rows_of: Callable[[Any], list[Any]]
) -> Iterator[PlacedRow]:
    """The elements of a text's arrays, and its other values. head: what was read of it before."""
    scanner = _Scanner(name, head, text)
    values = _elements(scanner)
    for number, row in enumerate((row for value in values for row in rows_of(value)), start=1):
        yield Place(name, "row", number), row


def _elements(scanner: _Scanner) -> Iterator[Any]:
    while first := scanner.next_character():
        if first != "[":
            yield scanner.read_value()
            continue
        scanner.skip_character()
        while (first := scanner.next_character()) != "]":
            if first == ",":
                scanner.skip_character()
            else:
                yield scanner.read_value()
        scanner.skip_character()


class _Scanner:
    """A text, of which only the part around the current value is in memory."""

    def __init__(self, name: str, head: str, text: TextIO) -> None:
        self._name = name
        self._text = text
        self._buffer = ""
        self._position = 0
        self._line = 1  # of the position
        self._decoder = json.JSONDecoder()
        self._append(head)

    def next_character(self) -> str:
        """The first character that is no space. "" at the end of the text."""
        while True:
            match = _SPACES.match(self._buffer, self._position)
            assert match is not None
            self._move_to(match.end())
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._read_more():
                return ""

    def skip_character(self) -> None:
        self._position += 1

    def read_value(self) -> Any:
        """The value that begins here. Raises ValueError if it is no JSON, or is cut."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except RecursionError:
                self._fail_too_deep()
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or (
                    len(self._buffer) - error.pos < _LONGEST_WORD
                )
                if not (is_cut and self._read_more()):
                    self._fail(error, is_cut=is_cut)
                continue
            if is_deeper(value, MAX_DEPTH):
                self._fail_too_deep()
            self._move_to(end)
            return value

    def _move_to(self, position: int) -> None:
        self._line += self._buffer.count("\n", self._position, position)
        self._position = position

    def _read_more(self) -> bool:
        """Whether there was more. Reads more at once the longer a value is."""
        chunk = self._text.read(max(READ_CHARS, len(self._buffer) - self._position))
        self._append(chunk)
        return bool(chunk)

    def _append(self, chunk: str) -> None:
        self._buffer = self._buffer[self._position :] + chunk
        self._position = 0
        index = find_bad_byte(chunk)
        if index is not None:
            index += len(self._buffer) - len(chunk)
            line = self._line + self._buffer.count("\n", 0, index)
            raise bad_byte_error(Place(self._name, "line", line), self._buffer, index)

    def _fail(self, error: json.JSONDecodeError, *, is_cut: bool) -> NoReturn:
        hint = "; the file may be cut" if is_cut and self._starts_value() else ""
        place = Place(
            self._name, "line", self._line + self._buffer.count("\n", self._position, error.pos)
        )
        start = self._buffer.rfind("\n", self._position, error.pos) + 1 or self._position
        got = preview(self._buffer[start : start + 100].strip().partition("\n")[0])
        raise ValueError(
            f"{place}: expected a JSON object, got {got} ({error.msg}{hint})"
        ) from error

    def _starts_value(self) -> bool:
        return self._buffer[self._position : self._position + 1] in ("{", "[", '"', "")

    def _fail_too_deep(self) -> NoReturn:
        place = Place(self._name, "line", self._line)
        raise ValueError(
            f"{place}: expected a JSON object with at most {MAX_DEPTH} lists and objects inside "
            "each other, got more"
        )
