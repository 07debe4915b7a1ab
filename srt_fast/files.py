"""Files of JSON lines, and writes that a crash cannot tear."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

WRITING_PREFIX = ".writing-"
"""Begins the name of a file or folder that is not complete yet."""


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, such as metrics.jsonl or samples.jsonl.

    Skips a half-written last line (kill -9) with a warning. Raises ValueError for a missing file
    and for any other line that is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of JSON lines, got none")
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:  # undecodable bytes raise it too
            if number < len(lines):
                raise ValueError(
                    f"{path}:{number}: expected one JSON object, got {line[:80]!r}"
                ) from error
            warnings.warn(
                f"{path}: skipped 1 half-written line at the end (line {number})", stacklevel=2
            )
    return rows


def append_rows(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON line a row, and flush. Raises ValueError for NaN and infinity."""
    file.write(_as_lines(rows))
    file.flush()


def open_rows(path: Path, resume_step: int | None) -> TextIO:
    """Open a file of rows for appending.

    resume_step: the step of the checkpoint that the run continues from. Rows of later steps and a
    half-written row are dropped first. None: a new run. Raises ValueError if a new run's file has
    rows.
    """
    if resume_step is not None and path.exists():
        rows = [row for row in read_rows(path) if row["step"] <= resume_step]
        write_atomically(path, _as_lines(rows))
    elif path.exists() and path.stat().st_size:
        raise ValueError(
            f"{path}: expected a new run folder, got an earlier run's rows; "
            "resume it or name another"
        )
    return open(path, "a", encoding="utf-8")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text. A crash leaves the old text or the new one."""
    unfinished = path.with_name(WRITING_PREFIX + path.name)
    unfinished.write_text(text, encoding="utf-8")
    sync_to_disk(unfinished)
    os.replace(unfinished, path)


def sync_to_disk(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
