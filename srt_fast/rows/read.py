"""Rows of data files of any format. The content tells the format, but for CSV: its name does."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator, Sequence

from srt_fast.rows.json_rows import read_json
from srt_fast.rows.place import Place, PlacedRow
from srt_fast.rows.sources import STDIN, file_suffix, list_files, open_bytes
from srt_fast.rows.tables import read_arrow, read_csv, read_parquet
from srt_fast.rows.text import open_text

logger = logging.getLogger(__name__)


def read_rows(names: Sequence[str], setting: str) -> Iterator[PlacedRow]:
    """The rows of files, one after the other, each with its place. A row is a value of JSON.

    names: files, folders, patterns, or "-". setting: what errors about a name begin with. A file
    without rows among several is counted in a warning. Raises ValueError for a file that cannot be
    read.
    """
    files = list_files(names, setting)
    empty = []
    for file in files:
        is_empty = True
        for row in read_file(file):
            is_empty = False
            yield row
        if is_empty:
            empty.append(file)
    if empty and len(empty) < len(files):
        logger.warning("skipped %d of %d files: no rows (%s)", len(empty), len(files), empty[0])


def read_file(name: str) -> Iterator[PlacedRow]:
    """The rows of one file or of standard input ("-")."""
    shown = "<stdin>" if name == STDIN else name
    with open_bytes(name) as file:
        head = file.peek(8)
        if head.startswith(b"PAR1"):
            yield from read_parquet(shown, file)
        elif head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from read_arrow(shown, file)
        elif head.startswith(b"PK\x03\x04"):
            yield from _read_inspect_archive(shown, file)
        else:
            read = read_csv if file_suffix(name) in (".csv", ".tsv") else read_json
            text = open_text(file)
            try:
                yield from read(shown, text)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{shown}: expected text in {error.encoding}, as its first bytes say, got "
                    f"others ({error.reason} at byte {error.start})"
                ) from error
            finally:
                text.detach()


def _read_inspect_archive(name: str, file: io.BufferedReader) -> Iterator[PlacedRow]:
    """The samples of a log of inspect in its format `eval`, which is a ZIP archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
            names = [part for part in archive.namelist() if part.startswith("samples/")]
            if not names:
                raise ValueError(
                    f"{name}: expected a log of inspect with samples, got an archive of "
                    f"{', '.join(archive.namelist()[:3]) or 'nothing'}"
                )
            for number, part in enumerate(names, start=1):
                text = io.TextIOWrapper(archive.open(part), "utf-8")
                for _, row in read_json(f"{name}, {part}", text):
                    yield Place(name, "sample", number), row
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{name}: expected a log of inspect, got {error}") from error
