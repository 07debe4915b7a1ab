"""Fields of rows by their paths.

    response.body          a field of an object in a field
    choices.0.text         an element of a list
    choices.*.text         of all elements
    solution_*             all fields whose names match
    solution_a,solution_b  both fields

A field whose own name is the whole path comes first: "a.b" in {"a.b": 1}. A path with `*`, `?` or a
comma has a list of values. Any other has one value.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

_MANY = frozenset("*?,")


def has_many(path: str) -> bool:
    """Whether the path has a list of values."""
    return not _MANY.isdisjoint(path)


def has_field(row: dict, path: str) -> bool:
    """Whether the row has a value there. It may be null."""
    return path in row or any(True for _ in _values(row, path))


def get_values(row: dict, path: str) -> list[Any]:
    """All values at the path, in the order of the row. Empty if there is none."""
    return [row[path]] if path in row else list(_values(row, path))


def get_value(row: dict, path: str) -> Any:
    """The value at a path, a list if the path has many. None if it is missing or null."""
    if path in row:
        return row[path]
    values = list(_values(row, path))
    if has_many(path):
        return values or None
    return values[0] if values else None


def missing_field_error(place: object, row: dict, path: str, setting: str) -> ValueError:
    """The error for a path without a value. It names the fields that there are."""
    got = f"fields {field_names(row)}"
    if get_values(row, path):
        got = "null"
    else:
        parts = path.split(",")[0].split(".")
        for length in range(len(parts) - 1, 0, -1):
            inner = get_values(row, ".".join(parts[:length]))
            if inner and isinstance(inner[0], dict):
                got = f"fields {field_names(inner[0])} in {'.'.join(parts[:length])!r}"
                break
    return ValueError(f"{place}: expected a value in field {path!r} ({setting}), got {got}")


def field_names(row: dict) -> str:
    """The names of the fields, with commas between them."""
    return ", ".join(map(str, row)) or "none"


def _values(row: Any, path: str) -> Iterator[Any]:
    for parts in _split(path):
        yield from _walk(row, parts)


@lru_cache(maxsize=256)
def _split(path: str) -> list[list[str]]:
    return [column.strip().split(".") for column in path.split(",")]


def _walk(value: Any, parts: list[str]) -> Iterator[Any]:
    if not parts:
        yield value
        return
    head, rest = parts[0], parts[1:]
    if isinstance(value, dict):
        if head in value:
            yield from _walk(value[head], rest)
        elif "*" in head or "?" in head:
            for name, member in value.items():
                if fnmatchcase(name, head):
                    yield from _walk(member, rest)
    elif isinstance(value, list):
        if head == "*":
            for member in value:
                yield from _walk(member, rest)
        elif head.isdecimal() and int(head) < len(value):
            yield from _walk(value[int(head)], rest)
