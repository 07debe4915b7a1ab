"""The gold answer in a column of a data set."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import read_answer


def final_answer(gold: str) -> str | None:
    r"""The answer in a gold column.

    The column holds the answer, or a solution that ends in \boxed{answer} (MATH) or "#### answer"
    (GSM8K).
    """
    return read_answer(gold, "boxed") or gold.rpartition("#### ")[2].strip() or None


def gold_texts(value: Any) -> list[str] | None:
    """The gold answers in a value: a text, a number, or a list of them, also one in JSON.

    Null, NaN and an empty text are no gold answer. None: the value is something else.
    """
    if value is None or value != value or value == "":
        return []
    if isinstance(value, str):
        return _texts_in_json(value) if value.startswith('["') else [value]
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return [str(value)]
    if isinstance(value, list):
        members = [gold_texts(member) for member in value]
        return None if None in members else [text for texts in members if texts for text in texts]
    return None


def agree(texts: list[str]) -> bool:
    """Whether gold answers are all the same."""
    return len(texts) < 2 or len({answer_key(final_answer(text)) for text in texts}) == 1


def _texts_in_json(text: str) -> list[str] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return [text]
    return gold_texts(value)
