"""How often a rule reads a completion as a careful reader does."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from srt_kernels.answers.canonical import answer_key
from voter.completions.cases import Read

COMPLETIONS = Path(__file__).parents[1] / "data" / "completions.jsonl"
ALL_STYLES = "all models"
SOLUTIONS = "MATH-500 solutions"

RIGHT = "right"
WRONG = "wrong"
MISSED = "none"
NO_ANSWER = "none, as there is none"
FALSE = "false answer"
"""Where the reader finds an answer, a rule's is right, wrong or none. Elsewhere it is none, or a
false answer."""


def read_completions() -> list[dict[str, Any]]:
    """Rows of style, text and answer. The answer is None where a careful reader finds none."""
    return [json.loads(line) for line in COMPLETIONS.read_text(encoding="utf-8").splitlines()]


def solution_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Problems with solutions, as completions. The gold answer is what a reader finds."""
    return [{"style": SOLUTIONS, "text": row["solution"], "answer": row["answer"]} for row in rows]


def outcome(label: str | None, answer: str | None) -> str:
    """What became of a completion. label: the reader's answer. answer: the rule's."""
    key = answer_key(answer)
    if label is None:
        return FALSE if key else NO_ANSWER
    if not key:
        return MISSED
    return RIGHT if key == answer_key(label) else WRONG


def evaluate_rules(
    rows: list[dict[str, Any]], rules: tuple[str, ...], read: Read
) -> list[dict[str, Any]]:
    """Of each rule and style the count of every outcome.

    misread: the style, the reader's answer and the rule's, where the rule finds another one.
    """
    figures = []
    for rule in rules:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        misread = []
        for row in rows:
            answer = read(row["text"], rule)
            result = outcome(row["answer"], answer)
            counts[row["style"]][result] += 1
            if row["style"] != SOLUTIONS:
                counts[ALL_STYLES][result] += 1
            if result in (WRONG, FALSE):
                misread.append((row["style"], row["answer"], answer))
        figures.append({"rule": rule, "styles": counts, "misread": misread})
    return figures
