"""Rows of files or of a set of the `datasets` library."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from srt_fast.config import TaskConfig
from srt_fast.rows.place import Place
from srt_fast.rows.read import read_rows
from srt_fast.rows.sources import STDIN

IdentifiedRow = tuple[str, Place, Any]
"""An id that is the same in every run, the place, and the row."""


def read_dataset(config: TaskConfig, name: str, split: str) -> Iterator[IdentifiedRow]:
    """The rows of a file, of a folder of files, or of a split of a set.

    Only a set of the `datasets` library has splits. Raises ValueError for a missing file or
    package, and for what cannot be read.
    """
    if config.kind == "datasets":
        rows = _datasets_rows(config, name, split)
    elif name == STDIN:
        raise ValueError("task.name: expected a file or a folder, got standard input")
    else:
        rows = read_rows([name], "task.name")
    first_source = None
    for place, row in rows:
        first_source = first_source or place.source
        part = "" if place.source == first_source else f"{place.source}/"
        yield f"{config.kind}/{part}{place.number}", place, row


def _datasets_rows(config: TaskConfig, name: str, split: str) -> Iterator[tuple[Place, Any]]:
    reserved = sorted(config.params.keys() & {"path", "split"})
    if reserved:
        raise ValueError(
            f"task.params: expected task.name and task.split to hold the path and split, "
            f"got {reserved}"
        )
    try:
        datasets: Any = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"task.kind: needs the package datasets ({error}): pip install 'srt-fast[data]'"
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split, **config.params)
    except (ValueError, TypeError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"task.name: the datasets library cannot load split {split!r} of {name}: {reason}"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield Place(f"{name}, split {split}", "row", number), row
