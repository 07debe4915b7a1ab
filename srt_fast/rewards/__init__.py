"""Rewards. designs/: one file for each reward function; designs/base_rate.py holds BaseRate,
reward.kind "base_rate". designs/episodes/: those that take several turns.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import fields
from typing import Any

import pydantic

from srt_fast.config.fields import explain
from srt_fast.config.reward import DESIGNS
from srt_fast.rewards.base import RewardFunction
from srt_fast.rewards.turns import turns_of

__all__ = ["RewardFunction", "make_reward_function"]


def make_reward_function(kind: str, params: dict[str, Any]) -> RewardFunction:
    """The reward function of this name with these settings.

    Raises ValueError for a setting that the function does not have, a wrong type or a value out of
    range.
    """
    is_of_episodes = (DESIGNS / "episodes" / f"{kind}.py").is_file()
    folder = "designs.episodes" if is_of_episodes else "designs"
    module = importlib.import_module(f"srt_fast.rewards.{folder}.{kind}")
    class_name = "".join(word.capitalize() for word in kind.split("_"))
    reward_class = getattr(module, class_name)
    names = [field.name for field in fields(reward_class)]
    if unknown := sorted(set(params) - set(names)):
        raise ValueError(
            f"reward.params: expected {', '.join(names) or 'none'} for {kind!r}, "
            f"got {', '.join(unknown)}"
        )
    try:
        function = pydantic.TypeAdapter(reward_class).validate_python(params)
    except pydantic.ValidationError as error:
        raise ValueError(explain(error, "reward.params: ")) from None
    for name in names:
        value = getattr(function, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"reward.params: {name}: expected a finite number, got {value}")
    function.requires  # noqa: B018  a requirement checks its settings when it is made
    try:
        turns_of(function)
    except ValueError as error:
        raise ValueError(f"reward.params: {error}" if params else str(error)) from None
    return function
