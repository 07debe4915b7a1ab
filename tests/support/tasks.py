"""What tests of tasks share: tasks and files by their settings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from srt_fast.config import Config, EvalConfig, ModelConfig, TaskConfig
from srt_fast.tasks import make_task
from srt_fast.tasks.base import Task

ONE_DIGIT_CHAIN_SUM = dict(
    kind="reasoning_gym",
    name="chain_sum",
    params=dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1),
)
"""A reasoning-gym set of 200 prompts."""


def task_of(held_out: int = 32, **fields: Any) -> Task:
    """A task with these settings."""
    config = Config(
        model=ModelConfig(path="unused"),
        task=TaskConfig(**fields),
        evaluation=EvalConfig(prompts=held_out),
    )
    return make_task(config)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_problems(folder: Path) -> str:
    """A file of 50 sums with gold answers."""
    rows = [{"problem": f"{i}+1=", "answer": i + 1} for i in range(50)]
    return write_jsonl(folder / "problems.jsonl", rows)
