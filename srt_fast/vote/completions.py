r"""Saved completions of any system: JSON lines in, groups of texts out. Plain Python.

Two shapes, recognised by the value of the field that holds the completions. A list is one prompt's whole group:
    {"prompt": "1/2+1/2=", "completions": ["\\boxed{1}", "\\boxed{2}"], "gold": "1"}
Anything else is one completion, and a second field says which of them belong together, in any order:
    {"id": 7, "response": "\\boxed{1}"}
A completion is a text, an object that holds one (text, content, generated_text or message.content), or a list of chat
messages, whose last assistant message counts. A null text is a completion that says nothing.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

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

    name: (
        Any  # the group field's value as it came, or the line's number where there is no such field
    )
    texts: list[str] = field(default_factory=list)
    gold: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Names of fields; None: the first row decides. A dotted name goes into objects: response.body.choices."""

    completions: str | None = None
    group_by: str | None = None
    gold: str | None = None


def read_groups(path: str, fields: Fields) -> tuple[list[SavedGroup], Fields]:
    """The groups of a JSONL file ("-": standard input) in order of first appearance, and the fields that were used.

    ValueError names file, line, expected and got.
    """
    if path == "-":
        return _grouped("<stdin>", sys.stdin.buffer, fields)
    if not Path(path).is_file():
        raise ValueError(
            f"expected a file of JSON lines, or - for standard input, got {path!r}, which is no file"
        )
    with open(path, "rb") as file:
        return _grouped(path, file, fields)


def _grouped(source: str, lines: BinaryIO, asked: Fields) -> tuple[list[SavedGroup], Fields]:
    groups: dict[Any, SavedGroup] = {}
    used = differs = None
    for number, where, row in _rows(source, lines):
        used = used or _choose(where, row, asked)
        failed = (
            row.get(used.completions, 0) is None
        )  # a request that came to nothing: a completion that says nothing
        value = None if failed else _get(where, row, used.completions, "completions")
        many = isinstance(value, list) and not _is_chat(value)
        if not many and used.group_by is None:
            raise ValueError(
                f"{where}: expected a field that says which completions belong together "
                f"({', '.join(GROUP_FIELDS)}), got fields {_names(row)}; name it with --group-by"
            )
        name = number if used.group_by is None else _get(where, row, used.group_by, "group-by")
        alone = many and asked.group_by is None  # a row that holds a group is that group
        group = groups.setdefault(
            number if alone else json.dumps(name, sort_keys=True), SavedGroup(name=name)
        )
        place = f"{where}, field {used.completions!r}"
        group.texts += [_text(place, item) for item in (value if many else [value])]
        gold = _gold(where, row, used.gold, insist=asked.gold is not None) if used.gold else None
        group.gold = gold if group.gold is None else group.gold
        if gold is not None and gold != group.gold:
            if asked.gold:
                raise ValueError(
                    f"{where}: expected one gold answer in a group, got {_shown(gold)} after {_shown(group.gold)}"
                )
            differs = differs or where
    if used is None:
        raise ValueError(f"{source}: expected at least one JSON object, got an empty file")
    if len(groups) > 1 and all(len(group.texts) <= 1 for group in groups.values()):
        logger.warning(
            "%s: every group has one completion, so there is nothing to vote on (--group-by names a field that joins "
            "rows)",
            source,
        )
    if differs:
        logger.warning(
            "%s: field %r differs within a group, so it is not taken for gold (--gold names one that is)",
            differs,
            used.gold,
        )
        used = replace(used, gold=None)
        groups = {key: replace(group, gold=None) for key, group in groups.items()}
    return list(groups.values()), used


def _rows(source: str, lines: Iterable[bytes]) -> Iterator[tuple[int, str, dict]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = json.loads(line)
        except (
            ValueError,
            RecursionError,
        ) as error:  # not JSON, not UTF-8, or nested a thousand deep
            raise ValueError(
                f"{where}: expected a JSON object, got {_shown(line.strip())} ({error})"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {_shown(row)}")
        yield number, where, row


def _choose(where: str, row: dict, asked: Fields) -> Fields:
    """The fields to use, from the first row and what was asked for."""
    completions = asked.completions or next(
        (
            name
            for names, types in ((LISTS, list), (SINGLES, str | dict | list))
            for name in names
            if isinstance(row.get(name), types)
        ),
        None,
    )
    if completions is None:
        raise ValueError(
            f"{where}: expected a field with completions ({', '.join(LISTS)}) or one completion "
            f"({', '.join(SINGLES)}), got fields {_names(row)}; name it with --completions"
        )
    free = [name for name, value in row.items() if name != completions and value is not None]
    group_by = asked.group_by or next((name for name in GROUP_FIELDS if name in free), None)
    golds = (
        name for name in GOLD_FIELDS if name in free and name != group_by and _is_answer(row[name])
    )
    return Fields(completions=completions, group_by=group_by, gold=asked.gold or next(golds, None))


def _get(where: str, row: dict, name: str, option: str) -> Any:
    """The value of a field, which must be there and not null."""
    value = row
    for part in [name] if name in row else name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        got = "null" if row.get(name, 0) is None else f"fields {_names(row)}"
        raise ValueError(f"{where}: expected a value in field {name!r} (--{option}), got {got}")
    return value


def _gold(where: str, row: dict, name: str, *, insist: bool) -> str | None:
    """A row's gold answer; null is none. A field that nobody named may also be missing or hold something else."""
    if name in row and row[name] is None or not insist and not _is_answer(row.get(name)):
        return None
    value = _get(where, row, name, "gold")
    if not _is_answer(value):
        raise ValueError(
            f"{where}: expected text or a number in field {name!r} (--gold), got {_shown(value)}"
        )
    return str(value)


def _is_answer(value: Any) -> bool:
    return (
        isinstance(value, str | int | float) and not isinstance(value, bool) and value == value
    )  # NaN: a missing number


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
            f"{where}: expected an assistant message among the chat's, got {_shown(value)}"
        )
    if (
        isinstance(value, list)
        and value
        and all(isinstance(part, dict) and "type" in part for part in value)
    ):
        return "".join(
            _text(where, part["text"]) for part in value if part["type"] == "text"
        )  # a message in parts
    raise ValueError(
        f"{where}: expected text, an object with text, content or message.content, or a list of chat messages, "
        f"got {_shown(value)}"
    )


def _is_chat(value: list) -> bool:
    return bool(value) and all(isinstance(message, dict) and "role" in message for message in value)


def _names(row: dict) -> str:
    return ", ".join(row) or "none"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
