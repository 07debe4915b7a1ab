"""Errors that several rooms raise, texts of errors, and what a terminal may show."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

URL_USER = re.compile(r"(?<=://)[^/\s@]+@")
"""user:password@ in a URL."""
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but not tab and line feed
    "\u2028\u2029\u202a-\u202e\u2066-\u2069"  # line separators, and what reverses text
    "\ud800-\udfff]"  # lone surrogates: bytes that are not UTF-8
)


class CheckpointError(Exception):
    """A checkpoint could not be written, for example on a full disk, or is damaged."""


def first_line(error: object) -> str:
    """The first line of an error's text. Its repr if the text is empty."""
    text = str(error).strip() or repr(error)
    return text.splitlines()[0]


def printable(text: object) -> str:
    r"""The text, with escapes such as \x1b in place of control characters.

    Prompts, completions, paths and names come from elsewhere. A terminal obeys control characters
    in them. Keeps tabs and line feeds.
    """
    return _UNPRINTABLE.sub(lambda match: _escape(match[0]), str(text))


def hide_passwords(text: str) -> str:
    """The text without the users and passwords of URLs."""
    return URL_USER.sub("***@", text)


def print_text(text: object, file: TextIO | None = None) -> None:
    """Print a text on standard output or on `file`. Escapes or hides what must not be shown."""
    stream = file or sys.stdout
    encoding = stream.encoding or "utf-8"
    shown = hide_passwords(printable(text))
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=stream)


@contextlib.contextmanager
def native_output_to(file: Path) -> Iterator[None]:
    """Append to `file` what C code and child processes write to standard output and error.

    Python's own output goes where it went before, also that of other threads. Raises OSError if the
    file cannot be opened.
    """
    with open(file, "ab", buffering=0) as log, contextlib.ExitStack() as restore:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            stream = getattr(sys, name)
            if stream is None:  # closed before the process began
                continue
            stream.flush()
            terminal = os.dup(descriptor)
            restore.callback(os.close, terminal)
            if _is_on(stream, descriptor):
                setattr(sys, name, _open_copy(terminal, stream))
                restore.callback(setattr, sys, name, stream)
            os.dup2(log.fileno(), descriptor)
            restore.callback(os.dup2, terminal, descriptor)
        # C has buffers of its own.
        restore.callback(ctypes.CDLL(None).fflush, None)
        yield


class PrintableFormatter(logging.Formatter):
    """Formats log messages for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _is_on(stream: TextIO, descriptor: int) -> bool:
    """Whether the stream writes to this descriptor. One of a test or a notebook may have none."""
    try:
        return stream.fileno() == descriptor
    except (AttributeError, io.UnsupportedOperation):
        return False


def _open_copy(descriptor: int, stream: TextIO) -> TextIO:
    """A stream like this one, on another descriptor. Keeps no text back."""
    raw: Any = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, write_through=True)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
