"""Prompts of a JSONL or Parquet file or of a set of the `datasets` library, with gold if any."""

from __future__ import annotations

import logging
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from srt_fast.config import TaskConfig
from srt_fast.tasks.dataset_rows import read_dataset
from srt_fast.tasks.verifiers import make_verifier
from srt_fast.types import Problem
from srt_kernels.answers.extract import read_answer

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


def final_answer(gold: str) -> str | None:
    r"""The answer in a gold column.

    The column holds the answer, or a solution that ends in \boxed{answer} (MATH) or "#### answer"
    (GSM8K).
    """
    return read_answer(gold, "boxed") or gold.rpartition("#### ")[2].strip() or None


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
    """The problems of one file or split, without repeated prompts."""
    problems: dict[str, Problem] = {}
    count = 0
    columns: set[str] = set()
    for number, where, row in read_dataset(config, name, split):
        problem = _problem(config, f"{config.kind}/{number}", where, row)
        problems.setdefault(problem.prompt, problem)
        columns.update(row)
        count += 1
    if not problems:
        raise ValueError(f"task.name: expected prompts in {name}, got an empty set")
    if config.gold_column and config.gold_column not in columns:
        raise ValueError(
            f"{name}: expected a column {config.gold_column!r} (task.gold_column), "
            f"got columns {', '.join(sorted(columns))}"
        )
    if len(problems) < count:
        logger.warning(
            "%s: dropped %d of %d rows, whose prompts came before",
            name,
            count - len(problems),
            count,
        )
    return list(problems.values())


def _problem(config: TaskConfig, name: str, where: str, row: Any) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: expected an object with the column {config.prompt_column!r}, got {row!r:.80}"
        )
    if config.prompt_column not in row:
        raise ValueError(
            f"{where}: expected a column {config.prompt_column!r} (task.prompt_column), "
            f"got columns {', '.join(row) or 'none'}"
        )
    prompt = row[config.prompt_column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            f"{where}: expected non-empty text in column {config.prompt_column!r}, "
            f"got {prompt!r:.80}"
        )
    gold = row.get(config.gold_column) if config.gold_column else None
    if not isinstance(gold, str | int | float | None):
        raise ValueError(
            f"{where}: expected text or a number in column {config.gold_column!r}, got {gold!r:.80}"
        )
    is_nan = gold != gold  # some writers spell a missing number so
    return Problem(
        id=name,
        prompt=prompt,
        gold=None if gold is None or is_nan else final_answer(str(gold)),
    )


def _hash(problem: Problem) -> bytes:
    return blake2b(problem.prompt.encode("utf-8", "surrogatepass")).digest()
