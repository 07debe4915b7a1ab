"""Data files: which files a name means, and their bytes without compression."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import logging
import lzma
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

STDIN = "-"
"""Names standard input."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv", ".eval")
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_BUFFER_BYTES = 1 << 18
_NO_ROWS = ("dataset_info.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside its tables."""


def list_files(names: Sequence[str], setting: str) -> list[str]:
    """The files that names mean: files, folders, patterns such as data/*.jsonl, or "-".

    A folder means its data files, also in folders inside it, in the order of their names. Its other
    files are counted in a warning. Raises ValueError, which begins with `setting`.
    """
    files: list[str] = []
    for name in names:
        path = Path(name).expanduser()
        if name == STDIN or path.is_file():
            found = [name if name == STDIN else str(path)]
        elif path.is_dir():
            found = _data_files(path)
        else:
            found = sorted(file for file in glob.glob(str(path)) if Path(file).is_file())
        if not found:
            what = "a folder without data files" if path.is_dir() else "none"
            raise ValueError(
                f"{setting}: expected a file, a folder with data files or a pattern, got {name!r}, "
                f"which is {what}"
            )
        files += found
    return files


def file_suffix(name: str) -> str:
    """The suffix of a name without that of its compression: ".csv" for "a.csv.gz"."""
    path = Path(name.lower())
    return Path(path.stem if path.suffix in COMPRESSED_SUFFIXES else path).suffix


@contextmanager
def open_bytes(name: str) -> Iterator[io.BufferedReader]:
    """A file's bytes, or those of standard input, without gzip, bzip2, xz or Zstandard.

    Raises ValueError for a compressed file that is damaged or cut.
    """
    file = io.BufferedReader(_raw(sys.stdin.buffer if name == STDIN else io.FileIO(name)))
    try:
        yield _decompress(file)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ValueError(_damaged(name, error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(_damaged(name, error)) from error
    finally:
        raw = file.detach()
        if name != STDIN:
            raw.close()


def import_pyarrow(*submodules: str) -> Any:
    """Import pyarrow and its submodules only where a file needs them. It takes a while."""
    try:
        import pyarrow

        for submodule in submodules:
            __import__(f"pyarrow.{submodule}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Parquet, Arrow and Zstandard files need the package pyarrow ({error}): "
            "pip install 'srt-fast[train]'"
        ) from error
    return pyarrow


def _data_files(folder: Path) -> list[str]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    data = [
        str(path)
        for path in files
        if file_suffix(path.name) in SUFFIXES and path.name not in _NO_ROWS
    ]
    if data and len(data) < len(files):
        logger.warning(
            "%s: skipped %d of %d files: their names are not those of data files",
            folder,
            len(files) - len(data),
            len(files),
        )
    return data


def _raw(file: Any) -> Any:
    """A file that io.BufferedReader may read. It only needs readinto."""
    return file


def _decompress(file: io.BufferedReader) -> io.BufferedReader:
    head = file.peek(8)
    if head.startswith(b"\x1f\x8b"):
        return io.BufferedReader(_raw(gzip.GzipFile(fileobj=file)), _BUFFER_BYTES)
    if head.startswith(b"BZh"):
        return io.BufferedReader(_raw(bz2.BZ2File(file)), _BUFFER_BYTES)
    if head.startswith(b"\xfd7zXZ\x00"):
        return io.BufferedReader(_raw(lzma.LZMAFile(file)), _BUFFER_BYTES)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        pyarrow = import_pyarrow()
        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
        return io.BufferedReader(_raw(stream), _BUFFER_BYTES)
    return file


def _damaged(name: str, error: Exception) -> str:
    return f"{name}: expected a whole compressed file, got one that is damaged or cut ({error})"
