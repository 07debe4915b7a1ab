"""Files of JSON lines, and writes that a crash cannot tear."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]

WRITING_PREFIX = ".writing-"
"""Begins the name of a file or folder that is not complete yet."""
MAX_DEPTH = 64
"""Lists and objects inside each other that a JSON text may have. Python's recursion has a limit."""

logger = logging.getLogger(__name__)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises ValueError for what is no JSON or no UTF-8, and for nesting deeper than MAX_DEPTH.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
        is_too_deep = True
    else:
        is_too_deep = is_deeper(value, MAX_DEPTH)
    if is_too_deep:
        raise ValueError(f"expected at most {MAX_DEPTH} lists and objects inside each other")
    return value


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file of JSON lines, such as metrics.jsonl or samples.jsonl.

    Skips a half-written last line (kill -9) and logs a warning. Raises ValueError for a missing
    file and for any other line that is no JSON object.
    """
    path = Path(path)
    lines = _read_lines(path)
    rows = []
    for number, row in _parse_lines(lines):
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            line = lines[number - 1]
            raise ValueError(f"{path}:{number}: expected one JSON object, got {line[:80]!r}")
        else:
            logger.warning("%s: skipped 1 half-written line at the end (line %d)", path, number)
    return rows


def read_sound_rows(path: Path, is_sound: Callable[[Row], bool]) -> tuple[list[Row], int]:
    """The JSON objects of a file that `is_sound` accepts, and the number of other lines.

    Raises ValueError for a missing file.
    """
    lines = _read_lines(path)
    rows = [row for _, row in _parse_lines(lines) if row is not None and is_sound(row)]
    return rows, len(lines) - len(rows)


def append_rows(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON line a row, and flush. Raises ValueError for NaN and infinity.

    Closes the file if writing fails, so that no row follows a half-written one.
    """
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    try:
        with _name_in_errors(file.name):
            file.write(lines)
            file.flush()
    except OSError:
        with contextlib.suppress(OSError):  # it tries to write once more
            file.close()
        raise


def open_rows(path: Path, resume_step: int | None) -> TextIO:
    """Open a file of rows for appending.

    resume_step: the step of the checkpoint that the run continues from. Rows of later steps are
    dropped first. So are damaged rows, such as a half-written one, with a warning. None: a new run.
    Raises ValueError if a new run's file has rows.
    """
    if resume_step is not None and path.exists():
        rows, damaged = read_sound_rows(path, lambda row: type(row.get("step")) is int)
        if damaged:
            logger.warning("%s: dropped %d damaged rows", path, damaged)
        lines = [json.dumps(row) for row in rows if row["step"] <= resume_step]
        write_atomically(path, "".join(line + "\n" for line in lines))
    elif path.exists() and path.stat().st_size:
        raise ValueError(
            f"{path}: expected a new run folder, got an earlier run's rows; "
            "resume it or name another"
        )
    return open(path, "a", encoding="utf-8")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content. A crash or a full disk leaves the old content or the new one."""
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    unfinished = path.with_name(WRITING_PREFIX + path.name)
    try:
        with _name_in_errors(str(path)):
            unfinished.write_bytes(data)
            sync_to_disk(unfinished)
            os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def sync_to_disk(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _name_in_errors(name: str) -> Iterator[None]:
    """Put the file's name into an OSError. Those of a full disk have none."""
    try:
        yield
    except OSError as error:
        error.filename = name
        raise


def _read_lines(path: Path) -> list[bytes]:
    """The lines of a file. Leaves out empty ones at the end."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of JSON lines, got none")
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _parse_lines(lines: list[bytes]) -> Iterator[tuple[int, Row | None]]:
    """Number and object of each line. None: the line is no JSON object."""
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        yield number, row if isinstance(row, dict) else None


def is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested deeper than `depth`."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return depth == 0 or any(is_deeper(member, depth - 1) for member in value)
