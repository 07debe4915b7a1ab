"""Prompts from a JSONL or Parquet file or a set of the `datasets` library, with gold answers where there are any."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from srt_fast.config import TaskConfig
from srt_fast.tasks.verifiers import make_verifier
from srt_fast.types import Problem
from srt_kernels.answers.extract import read_answer

logger = logging.getLogger(__name__)

MAX_HELD_OUT = 1024


class FileTask:
    """Finite set of prompts, each once; a prompt that comes again is dropped, the first one stays.

    Held out are the prompts of config.eval_name (a file, or a split of the same `datasets` set), and none of them is
    trained on. Without it, a tenth of the prompts (at least 1, at most MAX_HELD_OUT) is held out: those with the lowest
    hashes, so the choice depends on the prompts only. With config.test_time the training prompts are the held-out ones.
    """

    def __init__(self, config: TaskConfig):
        problems = _load(config, config.name, config.split)
        if config.test_time:
            self._held_out = problems
        elif config.eval_name:
            eval_file = config.name if config.kind == "datasets" else config.eval_name
            self._held_out = _load(config, eval_file, config.eval_name)
        else:
            self._held_out = sorted(problems, key=_hash)[
                : min(max(1, len(problems) // 10), MAX_HELD_OUT)
            ]
        self._held_out = [
            replace(problem, id=f"held-out/{problem.id}") for problem in self._held_out
        ]
        apart = set() if config.test_time else {problem.prompt for problem in self._held_out}
        self._train = [problem for problem in problems if problem.prompt not in apart]
        if config.eval_name and len(self._train) < len(problems):
            logger.warning(
                "%s: %d prompts are also in %s and are not trained on",
                config.name,
                len(problems) - len(self._train),
                config.eval_name,
            )
        if not self._train:
            raise ValueError(
                f"{config.name}: expected prompts besides the {len(apart)} held-out ones, got none"
            )
        if config.size > len(self._train):
            logger.warning(
                "task.size: %d prompts asked for, %s has %d",
                config.size,
                config.name,
                len(self._train),
            )
        self._train = self._train[: config.size or None]
        self.train_size = len(self._train)
        self.has_gold = _all_have_gold(config, "held-out", self._held_out)
        self.train_has_gold = _all_have_gold(config, "training", self._train)
        self.correct = make_verifier(config.verifier)

    def train(self, index: int) -> Problem:
        """Training problem `index`, in the order of the file."""
        return self._train[index]

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` held-out problems."""
        return self._held_out[:count]


def _all_have_gold(config: TaskConfig, which: str, problems: list[Problem]) -> bool:
    missing = sum(problem.gold is None for problem in problems)
    if config.gold_column and missing:
        logger.warning(
            "%s: %d of %d %s prompts have no gold answer in %r, so their accuracy is not reported",
            config.name,
            missing,
            len(problems),
            which,
            config.gold_column,
        )
    return missing == 0


def _load(config: TaskConfig, name: str, split: str) -> list[Problem]:
    """The problems of one file or split, without repeated prompts."""
    read_rows = {"jsonl": _jsonl_rows, "parquet": _parquet_rows, "datasets": _datasets_rows}[
        config.kind
    ]
    problems: dict[str, Problem] = {}
    count, columns = 0, set()
    for number, where, row in read_rows(config, name, split):
        problem = _problem(config, f"{config.kind}/{number}", where, row)
        problems.setdefault(problem.prompt, problem)
        columns.update(row)
        count += 1
    if not problems:
        raise ValueError(f"task.name: expected prompts in {name}, got an empty set")
    if config.gold_column and config.gold_column not in columns:
        got = ", ".join(sorted(columns))
        raise ValueError(
            f"{name}: expected a column {config.gold_column!r} (task.gold_column), got columns {got}"
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
        got = ", ".join(row) or "none"
        raise ValueError(
            f"{where}: expected a column {config.prompt_column!r} (task.prompt_column), got columns {got}"
        )
    prompt = row[config.prompt_column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            f"{where}: expected non-empty text in column {config.prompt_column!r}, got {prompt!r:.80}"
        )
    gold = row.get(config.gold_column) if config.gold_column else None
    if not isinstance(gold, str | int | float | None):
        raise ValueError(
            f"{where}: expected text or a number in column {config.gold_column!r}, got {gold!r:.80}"
        )
    missing = gold is None or gold != gold  # NaN is how some writers spell a missing number
    return Problem(id=name, prompt=prompt, gold=None if missing else final_answer(str(gold)))


def final_answer(gold: str) -> str | None:
    r"""A gold column holds the answer, or a solution that ends in \boxed{answer} (MATH) or "#### answer" (GSM8K)."""
    return read_answer(gold, "boxed") or gold.rpartition("#### ")[2].strip() or None


def _hash(problem: Problem) -> bytes:
    return blake2b(problem.prompt.encode("utf-8", "surrogatepass")).digest()


def _jsonl_rows(config: TaskConfig, name: str, split: str) -> Iterator[tuple[int, str, Any]]:
    with _existing(name).open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{name}, line {number}"
            if not line.strip():
                continue
            try:
                yield number, where, json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                raise ValueError(
                    f"{where}: expected a JSON object, got {line.strip()!r:.80} ({error})"
                ) from error


def _parquet_rows(config: TaskConfig, name: str, split: str) -> Iterator[tuple[int, str, Any]]:
    pyarrow = _data_package("pyarrow", "pyarrow.parquet")
    try:
        file = pyarrow.parquet.ParquetFile(_existing(name))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"task.name: expected a Parquet file, got {name} ({error})") from error
    rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
    for number, row in enumerate(rows, start=1):
        yield number, f"{name}, row {number}", row


def _datasets_rows(config: TaskConfig, name: str, split: str) -> Iterator[tuple[int, str, Any]]:
    datasets = _data_package("datasets")
    reserved = sorted(config.params.keys() & {"path", "split"})
    if reserved:
        raise ValueError(
            f"task.params: expected task.name and task.split to hold the path and split, got {reserved}"
        )
    try:
        rows = datasets.load_dataset(name, split=split, **config.params)
    except (ValueError, TypeError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"task.name: the datasets library cannot load split {split!r} of {name}: {reason}"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield number, f"{name}, split {split}, row {number}", row


def _existing(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"task.name: expected a file, found none at {path.absolute()}")
    return path


def _data_package(name: str, *modules: str):
    """Import a package of the extra `data`, with submodules, once it is needed."""
    try:
        package = importlib.import_module(name)
        for module in modules:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"task.kind: needs the package {name} ({error}): pip install 'srt-fast[data]'"
        ) from error
    return package
