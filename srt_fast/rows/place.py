"""Where a row is."""

from __future__ import annotations

from typing import Any, NamedTuple


class Place(NamedTuple):
    """Place("a.jsonl", "line", 3) is written as: a.jsonl, line 3."""

    source: str
    unit: str
    number: int  # from 1

    def __str__(self) -> str:
        return f"{self.source}, {self.unit} {self.number}"


PlacedRow = tuple[Place, Any]
