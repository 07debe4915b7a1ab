"""Where a row has its completions, the name of its group, and the gold answer.

A row of a known schema is recognised by its fields. Any other row is read by the usual names of
fields. docs/vote.md has the schemas as a table. Paths are those of srt_fast/rows/fields.py; a group
that is named by several fields has them all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from srt_fast.rows.chat import is_chat
from srt_fast.rows.fields import get_values, has_field, has_many

LISTS = (
    "completions", "responses", "outputs", "samples", "generations", "choices", "candidates",
    "predictions", "rollouts", "model_responses", "model_outputs", "generated_responses",
    "generated_texts",
)  # fmt: skip
SINGLES = (
    "completion", "response", "output", "generation", "model_completion", "model_response",
    "model_output", "generated_solution", "generated_text", "prediction", "message", "text",
)  # fmt: skip
CHATS = ("messages", "conversations", "conversation")
PROMPTS = (
    "prompt", "problem", "question", "instruction", "input", "inputs", "query", "origin_prompt",
    "full_prompt",
)  # fmt: skip
IDS = (
    "id", "group", "group_id", "uid", "prompt_id", "problem_id", "question_id", "example_id",
    "task_id", "doc_id", "custom_id", "key",
)  # fmt: skip
STEPS = ("step", "global_step")
"""Of a training log. The policies of two steps do not vote together."""
GOLDS = (
    "gold", "gold_answer", "ground_truth", "reference_answer", "expected_answer", "final_answer",
    "gt", "gts", "gt_answer", "reward_model.ground_truth", "answer", "target",
)  # fmt: skip
_IN_METADATA = tuple(f"metadata.{name}" for name in (*PROMPTS, *IDS))
_NUMBERED = re.compile(
    r"(.*(?:completion|response|output|generation|solution|sample))_?\d+", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The paths of one kind of row."""

    completions: str
    group: str | None  # None: the row is a group
    label: tuple[str, ...] = ()  # what names the group for people; else `group` does
    golds: tuple[str, ...] = ()  # the first that has an answer
    joins: bool = True  # rows of one group belong together, also if they have lists
    is_request: bool = False  # a row without completions is a request that failed
    filter: str | None = None  # of rows that differ in it only the first kind counts


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A known kind of row: the fields by which it is recognised, and its layout."""

    marks: tuple[str, ...]
    completions: str
    groups: tuple[str, ...]  # the first that has a value
    golds: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    is_request: bool = False
    filter: str | None = None


SCHEMAS = {
    "OpenAI and vLLM batch": Schema(
        marks=("custom_id", "response"),
        completions="response",
        groups=("custom_id",),
        is_request=True,
    ),
    "Anthropic message batch": Schema(
        marks=("custom_id", "result"),
        completions="result.message",
        groups=("custom_id",),
        is_request=True,
    ),
    "Gemini batch": Schema(
        marks=("response.candidates",),
        completions="response.candidates",
        groups=("key", "custom_id", "request.contents", "request"),
        is_request=True,
    ),
    "OpenAI Responses": Schema(
        marks=("object", "output"),
        completions="output",
        groups=(*PROMPTS, *_IN_METADATA),
        golds=("metadata.answer",),
    ),
    "OpenAI completions": Schema(
        marks=("object", "choices"),
        completions="choices",
        groups=(*PROMPTS, *_IN_METADATA),
        golds=("metadata.answer",),
    ),
    "lm-evaluation-harness samples": Schema(
        marks=("doc_id", "resps"),
        completions="resps",
        groups=("doc_id,doc_hash", "doc_id,doc", "doc_id"),
        label=("doc.problem", "doc.question", "doc.query", "doc.prompt", "doc.input", "doc_id"),
        golds=("target",),
        filter="filter",
    ),
    "lighteval details": Schema(
        marks=("__doc__", "__model_response__"),
        completions="__model_response__.text",
        groups=("__doc__.query,__doc__.id", "__doc__.query"),
        label=("__doc__.query",),
        golds=("__doc__.choices",),
    ),
    "lighteval 0.13 details": Schema(
        marks=("doc", "model_response"),
        completions="model_response.text",
        groups=("doc.query,doc.id", "doc.query"),
        label=("doc.query",),
        golds=("doc.choices",),
    ),
    "inspect samples": Schema(
        marks=("epoch", "input", "output.choices"),
        completions="output.choices",
        groups=("id,input",),
        label=("input",),
        golds=("target",),
        is_request=True,
    ),
    "Qwen's evaluation": Schema(
        marks=("code", "gt"),
        completions="code",
        groups=("question", "problem", "idx"),
        golds=("gt", "answer"),
    ),
}


def choose_layout(row: dict) -> Layout | None:
    """The layout of a row. None without a field that can have completions."""
    for schema in SCHEMAS.values():
        if all(has_field(row, mark) for mark in schema.marks):
            return Layout(
                completions=schema.completions,
                group=next((path for path in schema.groups if has_name(row, path)), None),
                label=schema.label,
                golds=schema.golds,
                is_request=schema.is_request,
                filter=schema.filter,
            )
    completions = _completions_field(row)
    return None if completions is None else usual_layout(row, completions)


def usual_layout(row: dict, completions: str) -> Layout:
    """The layout of a row whose completions are at that path, by the usual names of fields."""
    is_single = completions not in LISTS and not has_many(completions)
    name = _group_field(row, completions)
    steps = [step for step in STEPS if type(row.get(step)) is int] if is_single and name else []
    return Layout(
        completions=completions,
        group=",".join([name, *steps[:1]]) if name else None,
        label=(name,) if name and steps else (),
        golds=tuple(path for path in GOLDS if path != name and has_field(row, path)),
        joins=completions in SINGLES or completions in CHATS,
    )


def has_name(row: dict, path: str) -> bool:
    """Whether every field of a group's path has a value."""
    return all(
        value not in (None, "", [])
        for column in path.split(",")
        for value in get_values(row, column) or [None]
    )


def _group_field(row: dict, completions: str) -> str | None:
    if completions in CHATS:
        return completions
    names = (*PROMPTS, *CHATS, *IDS, *_IN_METADATA)
    return next((name for name in names if name != completions and has_name(row, name)), None)


def _completions_field(row: dict) -> str | None:
    for name in LISTS:
        if _is_list(name, row.get(name)):
            return name
    if columns := _numbered_columns(row):
        return ",".join(columns)
    for name in SINGLES:
        if isinstance(row.get(name), str | dict | list):
            return name
    for name in CHATS:
        if is_chat(row.get(name)):
            return name
    return next((name for name in (*SINGLES, *LISTS) if row.get(name, 0) is None), None)


def _is_list(name: str, value: Any) -> bool:
    """Whether a field of LISTS has completions.

    The choices of an API are objects with an index. Those of a question are texts or have labels.
    """
    if name == "choices":
        return isinstance(value, list) and any(
            isinstance(choice, dict) and "label" not in choice for choice in value
        )
    return isinstance(value, list | str | dict)


def _numbered_columns(row: dict) -> list[str]:
    """The columns solution_1, solution_2, ... of the first name that has at least two."""
    columns: dict[str, list[str]] = {}
    for name, value in row.items():
        match = _NUMBERED.fullmatch(str(name))
        if match and isinstance(value, str | dict | None):
            columns.setdefault(match[1], []).append(name)
    return next((names for names in columns.values() if len(names) > 1), [])
