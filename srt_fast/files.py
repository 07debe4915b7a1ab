"""TODO."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

WRITING = ".writing-"


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl or samples.jsonl. A half-written last line (kill -9) is skipped with a warning."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of JSON lines, found none")
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:  # also what undecodable bytes raise
            if number < len(lines):
                raise ValueError(
                    f"{path}:{number}: expected one JSON object, got {line[:80]!r}"
                ) from error
            warnings.warn(
                f"{path}: skipped 1 half-written line at the end (line {number})", stacklevel=2
            )
    return rows


def append_rows(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    file.flush()


def open_rows(path: Path, resume_step: int | None) -> TextIO:
    """Open for appending; on resume first drop the later rows and a half-written one, atomically."""
    if resume_step is not None and path.exists():
        kept = [row for row in read_rows(path) if row["step"] <= resume_step]
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            append_rows(file, kept)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    elif path.exists() and path.stat().st_size:
        raise ValueError(
            f"{path}: expected a new run folder, got an earlier run's rows; resume it or name another"
        )
    return open(path, "a", encoding="utf-8")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text so that a crash leaves the old one or the new one."""
    fresh = path.with_name(WRITING + path.name)
    fresh.write_text(text)
    _fsync(fresh)
    os.replace(fresh, path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
