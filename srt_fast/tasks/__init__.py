"""Where prompts come from, how they are worded, and how answers are compared with gold."""

from __future__ import annotations

from srt_fast.config import Config
from srt_fast.tasks.base import Task


def make_task(config: Config) -> Task:
    """The task that config.task describes; ValueError where it cannot be had."""
    if config.task.kind == "arithmetic":
        from srt_fast.tasks.arithmetic import ArithmeticTask

        return ArithmeticTask(config.task)
    if config.task.kind == "reasoning_gym":
        from srt_fast.tasks.reasoning_gym import GymTask

        return GymTask(
            config.task,
            config.evaluation.prompts + (config.monitor.prompts if config.monitor.every else 0),
        )
    from srt_fast.tasks.files import FileTask

    return FileTask(config.task)
