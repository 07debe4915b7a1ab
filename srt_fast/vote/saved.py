"""Saved completions as groups of answers, and the fields that a user names."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class SavedGroup:
    """The answers of the completions of one prompt.

    Worked example: boxes with 1/2, 0.5, 1/2 and none. `answers` has the places 1, 2, 1, 0 in the
    texts [None, "1/2", "0.5"] of SavedAnswers.
    """

    name: Any  # the value of the group's field as it is in the file; without one, the row's number
    answers: array[int] = field(default_factory=lambda: array("I"))
    gold: str | None = None
    gold_field: str | None = None
    filter: Any = None


@dataclass(frozen=True, kw_only=True)
class SavedAnswers:
    """All groups. Equal texts of answers are kept once."""

    groups: list[SavedGroup]
    texts: list[str | None]  # the different answers as they are written; None: no answer
    gold_field: str | None  # the names of the fields with gold answers


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Paths that the user names. None: the row decides."""

    completions: str | None = None
    group_by: str | None = None
    gold: str | None = None
    group_match: re.Pattern[str] | None = None  # the part of a group's name that counts
