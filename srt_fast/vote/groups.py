"""Rows of saved completions -> groups with the answers of their completions.

The completions are not kept. An answer of a group is a number: the place of its text among all
different ones.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from srt_fast.rows.chat import is_chat
from srt_fast.rows.fields import (
    field_names,
    get_value,
    has_field,
    has_many,
    missing_field_error,
)
from srt_fast.rows.place import Place
from srt_fast.rows.text import preview
from srt_fast.tasks.gold import agree, gold_texts
from srt_fast.vote.answers import AnswerQueue
from srt_fast.vote.completions import read_texts
from srt_fast.vote.layouts import (
    IDS,
    LISTS,
    PROMPTS,
    SINGLES,
    Layout,
    choose_layout,
    has_name,
    usual_layout,
)
from srt_fast.vote.names import group_name, group_value, match_name, name_key
from srt_fast.vote.saved import Fields, SavedAnswers, SavedGroup
from srt_fast.vote.skipped import EMPTY_COLUMN, FAILED, OTHER_FILTER, SEVERAL_GOLDS, Skipped

logger = logging.getLogger(__name__)


class GroupReader:
    """Reads rows into groups, which are in the order of their first appearance."""

    def __init__(self, fields: Fields, rule: str) -> None:
        """rule: where the answer of a completion is (read_answer)."""
        self.skipped = Skipped()
        self._fields = fields
        self._answers = AnswerQueue(rule, self._receive)
        self._groups: list[SavedGroup] = []
        self._places: dict[str | None, int] = {}  # of the texts of answers
        self._group_of: dict[str, SavedGroup] = {}  # by the key of its name
        self._layouts: dict[tuple, Layout] = {}  # by the names of a row's fields
        self._group_fields: dict[str, str] = {}  # by the file
        self._conflicts: dict[str, Place] = {}  # by gold fields that differ within a group

    def add(self, place: Place, row: Any) -> None:
        """Count the answers of a row. Raises ValueError with the place, expected and got."""
        if isinstance(row, list):
            row = {"messages" if is_chat(row) else "completions": row}
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected a JSON object, got {preview(row)}")
        layout, value = self._layout(place, row)
        if layout is None or _has_failed(row, layout, value):
            self.skipped.add(FAILED, place)
            return
        texts, is_list = self._texts(place, row, layout, value)
        group = self._group(place, row, layout, is_list)
        if layout.filter:
            group.filter = group.filter or row.get(layout.filter)
            if group.filter != row.get(layout.filter):
                self.skipped.add(OTHER_FILTER, place)
                return
        is_one_field = layout.group is not None and not has_many(layout.group)
        if is_list and is_one_field and _is_list_of_prompts(group.name, len(texts)):
            raise ValueError(
                f"{place}: expected one prompt with completions in a row, got a list of "
                f"{len(texts)} prompts beside as many completions"
            )
        self._answers.add(group, texts)
        self._add_gold(place, row, layout, group)

    def finish(self, source: str) -> SavedAnswers:
        """The groups. source: what was read, for messages. Raises ValueError without any group."""
        if not self._groups:
            reasons = " and ".join(self.skipped.phrases())
            raise ValueError(
                f"{source}: expected at least one row with completions, got "
                f"{'only ' + reasons if reasons else 'an empty file'}"
            )
        self._answers.finish()
        answers = self._answers.with_forms(list(self._places))
        if len(self._groups) > 1 and all(len(group.answers) <= 1 for group in self._groups):
            logger.warning(
                "%s: every group has one completion, so there is nothing to vote on (--group-by "
                "names a field that joins rows, --group-match a part of its value)",
                source,
            )
        for path, place in self._conflicts.items():
            logger.warning(
                "%s: field %r differs within a group, so it is not taken for gold (--gold names "
                "one that is)",
                place,
                path,
            )
        for group in self._groups:
            if group.gold_field in self._conflicts:
                group.gold = group.gold_field = None
        fields = dict.fromkeys(group.gold_field for group in self._groups if group.gold_field)
        return SavedAnswers(
            groups=self._groups, answers=answers, gold_field=", ".join(fields) or None
        )

    def close(self) -> None:
        """End the processes that read answers."""
        self._answers.close()

    def _receive(self, group: SavedGroup, answer: str | None) -> None:
        group.answers.append(self._places.setdefault(answer, len(self._places)))

    def _layout(self, place: Place, row: dict) -> tuple[Layout | None, Any]:
        """The layout of a row, and the value with its completions.

        The layout is None for a failed request without any field of completions.
        """
        names = tuple(row)
        layout = self._layouts.get(names)
        value = get_value(row, layout.completions) if layout else None
        if value is None:  # then the completions may be in another field
            layout = self._choose_layout(row) or layout
            value = get_value(row, layout.completions) if layout else None
        if layout is not None:
            self._layouts.setdefault(names, layout)
        elif not row.get("error"):
            raise ValueError(
                f"{place}: expected a field with completions ({', '.join(LISTS)}) or one "
                f"completion ({', '.join(SINGLES)}), got fields {field_names(row)}; name it with "
                "--completions"
            )
        return layout, value

    def _choose_layout(self, row: dict) -> Layout | None:
        fields = self._fields
        named = fields.completions
        layout = usual_layout(row, named) if named else choose_layout(row)
        if layout and fields.group_by:
            layout = replace(layout, group=fields.group_by, label=(), joins=True)
        if layout and fields.gold:
            layout = replace(layout, golds=(fields.gold,))
        return layout

    def _texts(self, place: Place, row: dict, layout: Layout, value: Any) -> tuple[list[str], bool]:
        """The texts of a row's completions, and whether they are a list."""
        path = layout.completions
        if type(value) is str and path not in LISTS:
            return [value], False
        if value is None and not has_field(row, path):
            raise missing_field_error(place, row, path, "--completions")
        try:
            if not has_many(path):
                return read_texts(value, may_be_list=path in LISTS)
            value = value or []
            if "*" not in path.split("."):  # columns, not the elements of a list
                for _ in range(sum(column in (None, "") for column in value)):
                    self.skipped.add(EMPTY_COLUMN, place)
                value = [column for column in value if column not in (None, "")]
            columns = [read_texts(column, may_be_list=False)[0] for column in value]
            return [text for texts in columns for text in texts], True
        except ValueError as error:
            raise ValueError(f"{place}, field {path!r}: {error}") from error

    def _group(self, place: Place, row: dict, layout: Layout, is_list: bool) -> SavedGroup:
        if is_list and not (layout.joins and layout.group):
            name = group_name(row, layout) if layout.group else None
            group = SavedGroup(name=place.number if name is None else name)
            self._groups.append(group)
            return group
        path = self._group_field(place, row, layout)
        value = group_value(row, path)
        name = group_name(row, replace(layout, group=path)) if layout.label else value
        if self._fields.group_match:
            name = value = match_name(place, self._fields.group_match, value)
        key = value if isinstance(value, str) else name_key(value)
        group = self._group_of.get(key)
        if group is None:
            group = self._group_of[key] = SavedGroup(name=name)
            self._groups.append(group)
        return group

    def _group_field(self, place: Place, row: dict, layout: Layout) -> str:
        """The field that names groups in the row's file: the same in all rows."""
        if layout.group is not None:
            path = self._group_fields.setdefault(place.source, layout.group)
        else:
            path = self._group_fields.get(place.source)
        if path is None:
            raise ValueError(
                f"{place}: expected a field that says which completions belong together "
                f"({', '.join((*PROMPTS, *IDS))}), got fields {field_names(row)}; name it with "
                "--group-by"
            )
        is_sure = path == layout.group and path != self._fields.group_by
        if not is_sure and not has_name(row, path):
            raise missing_field_error(place, row, path, "--group-by")
        return path

    def _add_gold(self, place: Place, row: dict, layout: Layout, group: SavedGroup) -> None:
        for path in layout.golds:
            value = get_value(row, path)
            if value is not None and value == group.gold:  # so it is in most rows
                return
            texts = gold_texts(value)
            if self._fields.gold:
                self._check_gold(place, row, texts)
            if not texts or path == layout.group:
                continue
            if not agree(texts):
                self.skipped.add(SEVERAL_GOLDS, place)
            elif group.gold is None:
                group.gold = texts[0]
                group.gold_field = path
            elif group.gold != texts[0] and not agree([group.gold, texts[0]]):
                if self._fields.gold:
                    raise ValueError(
                        f"{place}: expected one gold answer in a group, got {preview(texts[0])} "
                        f"after {preview(group.gold)}"
                    )
                self._conflicts.setdefault(path, place)
            return

    def _check_gold(self, place: Place, row: dict, texts: list[str] | None) -> None:
        path = self._fields.gold
        assert path is not None
        if not has_field(row, path):
            raise missing_field_error(place, row, path, "--gold")
        if texts is None:
            raise ValueError(
                f"{place}: expected text, a number or a list of them in field {path!r} (--gold), "
                f"got {preview(get_value(row, path))}"
            )


def _has_failed(row: dict, layout: Layout, value: Any) -> bool:
    """Whether the row is a request that failed, or was blocked, and has no completion."""
    if not layout.is_request and type(value) is str:
        return False
    response = row.get("response")
    status = response.get("status_code") if isinstance(response, dict) else None
    if isinstance(status, int) and status >= 400:
        return True
    is_missing = value is None or value == []
    return (bool(row.get("error")) or layout.is_request and is_missing) and (
        is_missing or layout.is_request
    )


def _is_list_of_prompts(name: Any, count: int) -> bool:
    return (
        isinstance(name, list)
        and len(name) == count > 1
        and all(isinstance(member, str) for member in name)
    )
