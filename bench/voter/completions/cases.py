"""Cases of finders and forms: completions with the value that each of them says."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

from srt_kernels.answers.canonical import answer_key

Read = Callable[[str, str], str | None]
"""read(text, rule) -> the final answer, or None. read_answer is one."""


def evaluate_cases(file: Path, read: Read) -> list[dict[str, Any]]:
    """Each case with whether its keys are right.

    file: rows of name, source, rule and completions; a completion has a text and a value.
    """
    cases = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        {
            "case": case["name"],
            "rule": case["rule"],
            "source": case["source"],
            "passes": passes(case, read),
        }
        for case in cases
    ]


def passes(case: dict[str, Any], read: Read) -> bool:
    """Whether equal values have equal keys, different values different keys, and null none."""
    answers = [
        (completion["value"], answer_key(read(completion["text"], case["rule"])))
        for completion in case["completions"]
    ]
    if any((value is None) != (key == 0) for value, key in answers):
        return False
    there = [(value, key) for value, key in answers if key]
    return all(
        (value == other_value) == (key == other_key)
        for (value, key), (other_value, other_key) in combinations(there, 2)
    )
