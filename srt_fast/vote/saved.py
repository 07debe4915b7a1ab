"""Saved completions as groups of answers, and the fields that a user names."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class ReadAnswer(NamedTuple):
    """An answer as it is written, its key and its canonical form."""

    text: str | None  # None: no answer
    key: int  # canonical.answer_key; 0: no answer
    form: str | None  # canonical.canonical_answer


@dataclass(kw_only=True, slots=True)
class SavedGroup:
    """The answers of the completions of one prompt.

    Worked example: boxes with 1/2, 0.5, 1/2 and none. `answers` has the places 0, 1, 0, 2 in
    SavedAnswers.answers, whose texts are "1/2", "0.5" and None.
    """

    name: Any  # the value of the group's field as it is in the file; without one, the row's number
    answers: array[int] = field(default_factory=lambda: array("I"))
    gold: str | None = None
    gold_field: str | None = None
    filter: Any = None


@dataclass(frozen=True, kw_only=True)
class SavedAnswers:
    """All groups. Answers that are written alike are kept once."""

    groups: list[SavedGroup]
    answers: list[ReadAnswer]
    gold_field: str | None  # the names of the fields with gold answers


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Paths that the user names. None: the row decides."""

    completions: str | None = None
    group_by: str | None = None
    gold: str | None = None
    group_match: re.Pattern[str] | None = None  # the part of a group's name that counts
