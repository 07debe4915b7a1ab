"""Prompts of files or of a set of the `datasets` library, with gold if any."""

from __future__ import annotations

import logging
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from srt_fast.config import TaskConfig
from srt_fast.rows.chat import chat_text, is_chat, plain_messages
from srt_fast.rows.fields import field_names, get_value, has_field
from srt_fast.tasks.dataset_rows import read_dataset
from srt_fast.tasks.gold import agree, final_answer, gold_texts
from srt_fast.tasks.verifiers import make_verifier
from srt_fast.types import Problem

logger = logging.getLogger(__name__)

MAX_HELD_OUT = 1024


class DatasetTask:
    """A finite set of prompts, each once. Of rows with equal prompts the first one stays.

    config.eval_name (a file, or a split of the same `datasets` set) has the held-out prompts. They
    are not trained on. Without it, a tenth of the prompts is held out, at least 1 and at most
    MAX_HELD_OUT: those with the lowest hashes, so that the choice depends on the prompts only.
    With config.test_time the training prompts are also the held-out ones.
    """

    def __init__(self, config: TaskConfig) -> None:
        assert config.name is not None
        problems = _load(config, config.name, config.split)
        self._held_out = _held_out_problems(config, config.name, problems)
        self._train = _training_problems(config, problems, self._held_out)
        self.train_size: int | None = len(self._train)
        self.has_gold = _all_have_gold(config, "held-out", self._held_out)
        self.train_has_gold = _all_have_gold(config, "training", self._train)
        self.correct = make_verifier(config.verifier)

    def train(self, index: int) -> Problem:
        """Training problem `index`, in the order of the file."""
        return self._train[index]

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` held-out problems."""
        return self._held_out[:count]


def _held_out_problems(config: TaskConfig, name: str, problems: list[Problem]) -> list[Problem]:
    if config.test_time:
        held_out = problems
    elif config.eval_name:
        eval_file = name if config.kind == "datasets" else config.eval_name
        held_out = _load(config, eval_file, config.eval_name)
    else:
        count = min(max(1, len(problems) // 10), MAX_HELD_OUT)
        held_out = sorted(problems, key=_hash)[:count]
    return [replace(problem, id=f"held-out/{problem.id}") for problem in held_out]


def _training_problems(
    config: TaskConfig, problems: list[Problem], held_out: list[Problem]
) -> list[Problem]:
    """The first config.size problems whose prompts are not held out."""
    excluded = set() if config.test_time else {problem.prompt for problem in held_out}
    train = [problem for problem in problems if problem.prompt not in excluded]
    if config.eval_name and len(train) < len(problems):
        logger.warning(
            "%s: %d prompts are also in %s and are not trained on",
            config.name,
            len(problems) - len(train),
            config.eval_name,
        )
    if not train:
        raise ValueError(
            f"{config.name}: expected prompts besides the {len(excluded)} held-out ones, got none"
        )
    if config.size > len(train):
        logger.warning(
            "task.size: expected at most the %d prompts of %s, got %d",
            len(train),
            config.name,
            config.size,
        )
    return train[: config.size or None]


def _all_have_gold(config: TaskConfig, part: str, problems: list[Problem]) -> bool:
    missing = sum(problem.gold is None for problem in problems)
    if config.gold_column and missing:
        logger.warning(
            "%s: %d of %d %s prompts have no gold answer in %r, so their accuracy is not reported",
            config.name,
            missing,
            len(problems),
            part,
            config.gold_column,
        )
    return missing == 0


def _load(config: TaskConfig, name: str, split: str) -> list[Problem]:
    """The problems of one file, folder or split, without repeated prompts."""
    problems: dict[str, Problem] = {}
    count = ambiguous = 0
    columns: set[str] = set()
    has_gold_column = False
    for row_id, place, row in read_dataset(config, name, split):
        problem, is_ambiguous = _problem(config, row_id, place, row)
        problems.setdefault(problem.prompt, problem)
        columns.update(row)
        has_gold_column |= config.gold_column is not None and has_field(row, config.gold_column)
        ambiguous += is_ambiguous
        count += 1
    if not problems:
        raise ValueError(f"task.name: expected prompts in {name}, got an empty set")
    if config.gold_column and not has_gold_column:
        raise ValueError(
            f"{name}: expected a column {config.gold_column!r} (task.gold_column), "
            f"got columns {', '.join(sorted(columns))}"
        )
    if ambiguous:
        logger.warning(
            "%s: %d of %d rows have several different gold answers in %r, so they have none",
            name,
            ambiguous,
            count,
            config.gold_column,
        )
    if len(problems) < count:
        logger.warning(
            "%s: dropped %d of %d rows, whose prompts came before",
            name,
            count - len(problems),
            count,
        )
    return list(problems.values())


def _problem(config: TaskConfig, row_id: str, place: object, row: Any) -> tuple[Problem, bool]:
    """A row's problem, and whether it has several different gold answers, which are none."""
    if not isinstance(row, dict):
        raise ValueError(
            f"{place}: expected an object with the column {config.prompt_column!r}, got {row!r:.80}"
        )
    if not has_field(row, config.prompt_column):
        raise ValueError(
            f"{place}: expected a column {config.prompt_column!r} (task.prompt_column), "
            f"got columns {field_names(row)}"
        )
    prompt = get_value(row, config.prompt_column)
    messages = None
    if is_chat(prompt):
        messages = _messages(config, place, prompt)
        prompt = chat_text(messages)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            f"{place}: expected non-empty text or a chat in column {config.prompt_column!r}, "
            f"got {prompt!r:.80}"
        )
    golds = gold_texts(get_value(row, config.gold_column)) if config.gold_column else []
    if golds is None:
        raise ValueError(
            f"{place}: expected text, a number or a list of them in column "
            f"{config.gold_column!r}, got {get_value(row, str(config.gold_column))!r:.80}"
        )
    gold = final_answer(golds[0]) if golds and agree(golds) else None
    problem = Problem(
        id=row_id, prompt=prompt, messages=tuple(messages) if messages else None, gold=gold
    )
    return problem, not agree(golds)


def _messages(config: TaskConfig, place: object, chat: list[dict]) -> list[dict[str, Any]]:
    """The messages of a chat. Raises ValueError for what the settings or a model cannot take."""
    column = config.prompt_column
    if not config.chat:
        raise ValueError(
            f"{place}: column {column!r} holds a chat: expected task.chat true, got false"
        )
    try:
        messages = plain_messages(chat)
    except ValueError as error:
        raise ValueError(f"{place}, column {column!r}: {error}") from error
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{place}: expected a chat in column {column!r} that ends before the answer, got one "
            "that ends with a message of the assistant"
        )
    if config.system is not None and messages[0]["role"] == "system":
        raise ValueError(
            f"{place}: task.system: expected none for a chat with a system message, got both"
        )
    return messages


def _hash(problem: Problem) -> bytes:
    return blake2b(problem.prompt.encode("utf-8", "surrogatepass")).digest()
