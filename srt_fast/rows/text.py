"""Text files: the encoding, and errors that name the line of a byte that is not in it."""

from __future__ import annotations

import io
import json
from typing import Any


def open_text(file: io.BufferedReader) -> io.TextIOWrapper:
    r"""The text of a file in UTF-8, UTF-16 or UTF-32, without a byte order mark.

    Line ends of all systems become "\n". A byte that is not UTF-8 becomes a lone surrogate, which
    find_bad_byte finds.
    """
    encoding = json.detect_encoding(file.peek(4)[:4])
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    return io.TextIOWrapper(file, encoding, errors=errors)


def find_bad_byte(text: str) -> int | None:
    """The place of the first byte that is not UTF-8."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def bad_byte_error(place: object, text: str, index: int) -> ValueError:
    """The error for the byte at text[index]. place: of the line."""
    before = text[max(index - 30, 0) : index].rpartition("\n")[2]
    return ValueError(
        f"{place}: expected UTF-8, got byte 0x{ord(text[index]) - 0xDC00:02x} after {before!r} "
        "(iconv -f LATIN1 -t UTF-8 converts Latin-1)"
    )


def preview(value: Any) -> str:
    """A value as an error shows it: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
