"""Reward designs, one small file each: feedback/base_rate.py holds the class BaseRate, which is feedback.kind "base_rate"."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

import pydantic

from srt_fast.config import explain
from srt_fast.feedback.base import Feedback, Groups, Reward

__all__ = ["Feedback", "Groups", "Reward", "make_design"]


def make_design(kind: str, params: dict[str, Any]) -> Feedback:
    """The design of this name with these settings. ValueError for a setting that it does not have, a wrong type or a value out
    of range."""
    module = importlib.import_module(f"srt_fast.feedback.{kind}")
    design = getattr(module, "".join(word.capitalize() for word in kind.split("_")))
    known = [field.name for field in fields(design)]
    if unknown := sorted(set(params) - set(known)):
        raise ValueError(f"feedback.params: expected {', '.join(known) or 'none'} for {kind!r}, got {', '.join(unknown)}")
    try:
        return pydantic.TypeAdapter(design).validate_python(params)
    except pydantic.ValidationError as error:
        raise ValueError(explain(error, "feedback.params: ")) from None
