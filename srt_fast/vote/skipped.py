"""What does not count in a vote, by the reason."""

from __future__ import annotations

from srt_fast.rows.place import Place

Reason = tuple[str, str]
"""What is skipped: one and many."""
FAILED: Reason = ("failed request", "failed requests")
OTHER_FILTER: Reason = ("repetition under another filter", "repetitions under another filter")
SEVERAL_GOLDS: Reason = ("gold with several answers", "golds with several answers")
EMPTY_COLUMN: Reason = ("empty column", "empty columns")


class Skipped:
    """Counts by the reason, with the first place of each."""

    def __init__(self) -> None:
        self._counts: dict[Reason, int] = {}
        self._places: dict[Reason, Place] = {}

    def add(self, reason: Reason, place: Place) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._places.setdefault(reason, place)

    def phrases(self) -> list[str]:
        """A phrase for each reason: 2 failed requests (first: a.jsonl, line 3)."""
        return [
            f"{count_text(count, *reason)} (first: {self._places[reason]})"
            for reason, count in self._counts.items()
        ]


def count_text(number: int, noun: str, plural: str | None = None) -> str:
    """1 group, 2,000 groups."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
