"""Reward designs, one small file each: feedback/base_rate.py holds the class BaseRate, which is reward.kind "base_rate"."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

import pydantic

from srt_fast.config.fields import explain
from srt_fast.rewards.base import RewardFunction
from srt_fast.types import Groups, Reward

__all__ = ["RewardFunction", "Groups", "Reward", "make_reward_function"]


def make_reward_function(kind: str, params: dict[str, Any]) -> RewardFunction:
    """The design of this name with these settings. ValueError for a setting that it does not have, a wrong type or a value out
    of range."""
    module = importlib.import_module(f"srt_fast.rewards.designs.{kind}")
    design = getattr(module, "".join(word.capitalize() for word in kind.split("_")))
    known = [field.name for field in fields(design)]
    if unknown := sorted(set(params) - set(known)):
        raise ValueError(
            f"reward.params: expected {', '.join(known) or 'none'} for {kind!r}, got {', '.join(unknown)}"
        )
    try:
        return pydantic.TypeAdapter(design).validate_python(params)
    except pydantic.ValidationError as error:
        raise ValueError(explain(error, "reward.params: ")) from None
