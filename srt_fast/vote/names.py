"""The names of groups: what rows of one group have in common."""

from __future__ import annotations

import json
import re
from typing import Any

from srt_fast.rows.chat import content, is_chat, role, until_last_user
from srt_fast.rows.fields import get_value
from srt_fast.rows.place import Place
from srt_fast.rows.text import preview
from srt_fast.vote.layouts import CHATS, Layout


def group_name(row: dict, layout: Layout) -> Any:
    """What names a group for people."""
    labels = (get_value(row, path) for path in layout.label)
    label = next((label for label in labels if label not in (None, "", [])), None)
    assert layout.group is not None
    return group_value(row, layout.group) if label is None else label


def group_value(row: dict, path: str) -> Any:
    """The value that a group's rows have in common. Of a chat it is the prompt."""
    value = get_value(row, path)
    return until_last_user(value) if path in CHATS and is_chat(value) else value


def match_name(place: Place, pattern: re.Pattern[str], value: Any) -> str:
    match = pattern.search(str(value))
    if match is None:
        raise ValueError(
            f"{place}: expected a group's name that matches {pattern.pattern!r} (--group-match), "
            f"got {preview(value)}"
        )
    return match[1] if pattern.groups else match[0]


def name_key(value: Any) -> str:
    """Equal for equal names that are no texts. Messages may differ in what is no content."""
    return "\0" + json.dumps(_plain(value), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if is_chat(value):
        return [[role(message), content(message)] for message in value]
    return [_plain(member) for member in value] if isinstance(value, list) else value
