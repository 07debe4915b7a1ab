"""Rows of CSV, Parquet and Arrow files."""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from srt_fast.rows.place import Place, PlacedRow
from srt_fast.rows.sources import import_pyarrow
from srt_fast.rows.text import bad_byte_error, find_bad_byte

_BATCH_ROWS = 1024


def read_csv(name: str, text: TextIO) -> Iterator[PlacedRow]:
    """The rows as objects of texts. The first line names the columns.

    The separator is the comma, semicolon or tab, whichever the first line has most of. Raises
    ValueError for a row with too many or too few cells.
    """
    csv.field_size_limit(sys.maxsize)
    header = text.readline()
    separator = max(",;\t", key=header.count)
    lines = _checked_lines(name, itertools.chain([header], text))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        columns = next(reader, [])
        for cells in reader:
            place = Place(name, "line", reader.line_num)
            if not cells:
                continue
            if len(cells) != len(columns):
                raise ValueError(
                    f"{place}: expected {len(columns)} cells, got {len(cells)} (columns "
                    f"{', '.join(columns)})"
                )
            yield place, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        hint = "; the file may be cut" if "end of data" in str(error) else ""
        place = Place(name, "line", reader.line_num)
        raise ValueError(f"{place}: expected a row of CSV, got none ({error}{hint})") from error


def read_parquet(name: str, file: io.BufferedReader) -> Iterator[PlacedRow]:
    """The rows of a Parquet file. Raises ValueError for a damaged one."""
    pyarrow = import_pyarrow("parquet")
    try:
        table = pyarrow.parquet.ParquetFile(_seekable(file))
        batches = table.iter_batches(batch_size=_BATCH_ROWS)
        yield from _numbered(name, batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{name}: expected a whole Parquet file, got one that is damaged or cut ({error})"
        ) from error


def read_arrow(name: str, file: io.BufferedReader) -> Iterator[PlacedRow]:
    """The rows of an Arrow file or stream. Raises ValueError for a damaged one."""
    pyarrow = import_pyarrow("ipc")
    try:
        if file.peek(6).startswith(b"ARROW1"):
            reader = pyarrow.ipc.open_file(_seekable(file))
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = pyarrow.ipc.open_stream(file)
        yield from _numbered(name, batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{name}: expected a whole Arrow file, got one that is damaged or cut ({error})"
        ) from error


def _numbered(name: str, batches: Any) -> Iterator[PlacedRow]:
    rows = (
        row
        for batch in batches
        for start in range(0, batch.num_rows, _BATCH_ROWS)
        for row in batch.slice(start, _BATCH_ROWS).to_pylist()
    )
    for number, row in enumerate(rows, start=1):
        yield Place(name, "row", number), row


def _seekable(file: io.BufferedReader) -> Any:
    """The file itself, or its content if it comes through a pipe or was compressed."""
    if file.seekable() and isinstance(file.raw, io.FileIO):
        return file
    return io.BytesIO(file.read())


def _checked_lines(name: str, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if (index := find_bad_byte(line)) is not None:
            raise bad_byte_error(Place(name, "line", number), line, index)
        yield line
