r"""Saved completions of any system: JSON lines in, groups of texts out. Plain Python.

There are two shapes of a row. The value of the field with the completions tells them apart. A list
is the whole group of one prompt:
    {"prompt": "1/2+1/2=", "completions": ["\\boxed{1}", "\\boxed{2}"], "gold": "1"}
Anything else is one completion. A second field says which completions belong together, in any
order:
    {"id": 7, "response": "\\boxed{1}"}
A completion is a text, an object that holds one (text, content, generated_text or
message.content), or a list of chat messages, of which the last assistant message counts. A null is
a completion without text.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from srt_fast.files import parse_json

logger = logging.getLogger(__name__)

LISTS = ("completions", "responses", "outputs", "samples", "generations", "choices")
SINGLES = ("completion", "response", "output", "generation", "text")
GROUP_FIELDS = (
    "prompt",
    "problem",
    "question",
    "input",
    "id",
    "group",
    "group_id",
    "uid",
    "prompt_id",
    "problem_id",
    "question_id",
    "custom_id",
)
GOLD_FIELDS = ("gold", "answer")
_TEXT_FIELDS = ("text", "content", "generated_text", "message")


@dataclass(kw_only=True)
class SavedGroup:
    """The completions of one prompt."""

    name: Any  # the value of the group field as it is in the file; without one, the line's number
    texts: list[str] = field(default_factory=list)
    gold: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Names of fields. None: the first row decides.

    A dotted name goes into objects: response.body.choices.
    """

    completions: str | None = None
    group_by: str | None = None
    gold: str | None = None


def read_groups(path: str, fields: Fields) -> tuple[list[SavedGroup], Fields]:
    """Reads a JSONL file ("-": standard input). Returns its groups, and the fields that were used.

    The groups are in order of first appearance. A ValueError names file, line, expected and got.
    """
    if path == "-":
        return _group_rows("<stdin>", sys.stdin.buffer, fields)
    if not Path(path).is_file():
        raise ValueError(
            f"expected a file of JSON lines, or - for standard input, got {path!r}, which is no "
            "file"
        )
    with open(path, "rb") as file:
        return _group_rows(path, file, fields)


def _group_rows(source: str, lines: BinaryIO, requested: Fields) -> tuple[list[SavedGroup], Fields]:
    groups: dict[Any, SavedGroup] = {}
    fields: Fields | None = None
    conflict: str | None = None  # the first line whose gold answer differs from its group's
    for number, where, row in _rows(source, lines):
        fields = fields or _choose_fields(where, row, requested)
        completions, is_list = _completions(where, row, fields)
        name = number
        if fields.group_by is not None:
            name = _get(where, row, fields.group_by, "group-by")
        is_whole_group = is_list and requested.group_by is None
        key = number if is_whole_group else json.dumps(name, sort_keys=True)
        group = groups.setdefault(key, SavedGroup(name=name))
        place = f"{where}, field {fields.completions!r}"
        group.texts += [_text(place, completion) for completion in completions]
        gold = _gold(where, row, fields, is_requested=requested.gold is not None)
        if group.gold is None:
            group.gold = gold
        elif gold is not None and gold != group.gold:
            if requested.gold:
                raise ValueError(
                    f"{where}: expected one gold answer in a group, got {_preview(gold)} after "
                    f"{_preview(group.gold)}"
                )
            conflict = conflict or where
    if fields is None:
        raise ValueError(f"{source}: expected at least one JSON object, got an empty file")
    if len(groups) > 1 and all(len(group.texts) <= 1 for group in groups.values()):
        logger.warning(
            "%s: every group has one completion, so there is nothing to vote on (--group-by names "
            "a field that joins rows)",
            source,
        )
    if conflict is None:
        return list(groups.values()), fields
    logger.warning(
        "%s: field %r differs within a group, so it is not taken for gold (--gold names one that "
        "is)",
        conflict,
        fields.gold,
    )
    return [replace(group, gold=None) for group in groups.values()], replace(fields, gold=None)


def _rows(source: str, lines: Iterable[bytes]) -> Iterator[tuple[int, str, dict]]:
    """Number, place for messages, and JSON object of each line that is not blank."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(
                f"{where}: expected a JSON object, got {_preview(line.strip())} ({error})"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {_preview(row)}")
        yield number, where, row


def _choose_fields(where: str, row: dict, requested: Fields) -> Fields:
    """The fields to use, from the first row and the requested ones."""
    completions = requested.completions or _completions_field(row)
    if completions is None:
        raise ValueError(
            f"{where}: expected a field with completions ({', '.join(LISTS)}) or one completion "
            f"({', '.join(SINGLES)}), got fields {_field_names(row)}; name it with --completions"
        )
    others = [name for name, value in row.items() if name != completions and value is not None]
    group_by = requested.group_by
    if not group_by:
        group_by = next((name for name in GROUP_FIELDS if name in others), None)
    gold = requested.gold
    if not gold:
        golds = [name for name in GOLD_FIELDS if name in others and name != group_by]
        gold = next((name for name in golds if _is_answer(row[name])), None)
    return Fields(completions=completions, group_by=group_by, gold=gold)


def _completions_field(row: dict) -> str | None:
    for name in LISTS:
        if isinstance(row.get(name), list):
            return name
    for name in SINGLES:
        if isinstance(row.get(name), str | dict | list):
            return name
    return None


def _completions(where: str, row: dict, fields: Fields) -> tuple[list[Any], bool]:
    """The completions of a row, and whether the row has a list of them."""
    assert fields.completions is not None
    value = None
    is_failed_request = row.get(fields.completions, 0) is None  # it has a completion without text
    if not is_failed_request:
        value = _get(where, row, fields.completions, "completions")
    if isinstance(value, list) and not _is_chat(value):
        return value, True
    if fields.group_by is None:
        raise ValueError(
            f"{where}: expected a field that says which completions belong together "
            f"({', '.join(GROUP_FIELDS)}), got fields {_field_names(row)}; name it with --group-by"
        )
    return [value], False


def _get(where: str, row: dict, name: str, option: str) -> Any:
    """The value of a field. Raises ValueError if it is missing or null."""
    value: Any = row
    for part in [name] if name in row else name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        is_null = name in row and row[name] is None
        got = "null" if is_null else f"fields {_field_names(row)}"
        raise ValueError(f"{where}: expected a value in field {name!r} (--{option}), got {got}")
    return value


def _gold(where: str, row: dict, fields: Fields, *, is_requested: bool) -> str | None:
    """The gold answer of a row. A null is none.

    A field that --gold does not name may also be missing or hold something else.
    """
    name = fields.gold
    if not name or name in row and row[name] is None:
        return None
    if not is_requested and not _is_answer(row.get(name)):
        return None
    value = _get(where, row, name, "gold")
    if not _is_answer(value):
        raise ValueError(
            f"{where}: expected text or a number in field {name!r} (--gold), got {_preview(value)}"
        )
    return str(value)


def _is_answer(value: Any) -> bool:
    """Whether it is text or a number. NaN is a missing number."""
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value == value


def _text(where: str, value: Any) -> str:
    """The text of one completion."""
    if isinstance(value, str | None):
        return value or ""
    if isinstance(value, dict):
        for name in _TEXT_FIELDS:
            if name in value:
                return _text(where, value[name])
    if isinstance(value, list) and _is_chat(value):
        for message in reversed(value):
            if message["role"] == "assistant":
                return _text(where, message.get("content"))
        raise ValueError(
            f"{where}: expected an assistant message among the chat's, got {_preview(value)}"
        )
    if isinstance(value, list) and _is_message_in_parts(value):
        return "".join(_part_text(where, part) for part in value if part["type"] == "text")
    raise ValueError(
        f"{where}: expected text, an object with text, content or message.content, or a list of "
        f"chat messages, got {_preview(value)}"
    )


def _part_text(where: str, part: dict) -> str:
    """The text of a chat message's part."""
    if "text" not in part:
        raise ValueError(f"{where}: expected text in a message's part, got {_preview(part)}")
    return _text(where, part["text"])


def _is_chat(value: list) -> bool:
    return bool(value) and all(isinstance(message, dict) and "role" in message for message in value)


def _is_message_in_parts(value: list) -> bool:
    return bool(value) and all(isinstance(part, dict) and "type" in part for part in value)


def _field_names(row: dict) -> str:
    return ", ".join(row) or "none"


def _preview(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
