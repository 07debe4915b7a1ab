"""Rows of a JSONL file, a Parquet file or a set of the `datasets` library.

Each reader yields (number, where, row). `where` names the row in error messages. Rows are counted
from 1.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srt_fast.config import TaskConfig
from srt_fast.files import parse_json

NumberedRow = tuple[int, str, Any]


def read_dataset(config: TaskConfig, name: str, split: str) -> Iterator[NumberedRow]:
    """The rows of config.kind's file or set. Only a set of the `datasets` library has splits.

    Raises ValueError for a missing file or package, and for what cannot be read.
    """
    if config.kind == "jsonl":
        return _jsonl_rows(name)
    if config.kind == "parquet":
        return _parquet_rows(name)
    return _datasets_rows(config, name, split)


def _jsonl_rows(name: str) -> Iterator[NumberedRow]:
    with _existing_file(name).open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{name}, line {number}"
            if not line.strip():
                continue
            try:
                yield number, where, parse_json(line)
            except ValueError as error:
                raise ValueError(
                    f"{where}: expected a JSON object, got {line.strip()!r:.80} ({error})"
                ) from error


def _parquet_rows(name: str) -> Iterator[NumberedRow]:
    pyarrow = _import_package("pyarrow", "pyarrow.parquet")
    try:
        file = pyarrow.parquet.ParquetFile(_existing_file(name))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"task.name: expected a Parquet file, got {name} ({error})") from error
    rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
    for number, row in enumerate(rows, start=1):
        yield number, f"{name}, row {number}", row


def _datasets_rows(config: TaskConfig, name: str, split: str) -> Iterator[NumberedRow]:
    datasets = _import_package("datasets")
    reserved = sorted(config.params.keys() & {"path", "split"})
    if reserved:
        raise ValueError(
            f"task.params: expected task.name and task.split to hold the path and split, "
            f"got {reserved}"
        )
    try:
        rows = datasets.load_dataset(name, split=split, **config.params)
    except (ValueError, TypeError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"task.name: the datasets library cannot load split {split!r} of {name}: {reason}"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield number, f"{name}, split {split}, row {number}", row


def _existing_file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"task.name: expected a file, got none at {path.absolute()}")
    return path


def _import_package(name: str, *submodules: str) -> Any:
    """Import a package of the extra `data`, and its submodules, only when a task needs it."""
    try:
        package = importlib.import_module(name)
        for submodule in submodules:
            importlib.import_module(submodule)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"task.kind: needs the package {name} ({error}): pip install 'srt-fast[data]'"
        ) from error
    return package
