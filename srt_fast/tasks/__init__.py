"""Where prompts come from, how they are worded, and how answers are compared with gold."""

from __future__ import annotations

from srt_fast.config import Config
from srt_fast.tasks.arithmetic import ArithmeticTask
from srt_fast.tasks.base import Task
from srt_fast.tasks.dataset import DatasetTask
from srt_fast.tasks.reasoning_gym import GymTask


def make_task(config: Config) -> Task:
    """The task that config.task describes. Raises ValueError if it cannot be made."""
    if config.task.kind == "arithmetic":
        return ArithmeticTask(config.task)
    if config.task.kind == "reasoning_gym":
        probe_prompts = config.monitor.prompts if config.monitor.every else 0
        return GymTask(config.task, held_out_count=config.evaluation.prompts + probe_prompts)
    return DatasetTask(config.task)
