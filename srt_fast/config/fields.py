"""TODO."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import pydantic
import pydantic.dataclasses
import tyro
import yaml
from pydantic import Field


def _frozen(cls):
    """A frozen, keyword-only dataclass whose types and ranges pydantic checks; one ValueError names every bad field."""
    cls = pydantic.dataclasses.dataclass(
        frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    )(cls)
    checked_init = cls.__init__

    @functools.wraps(checked_init)
    def __init__(self, *args, **kwargs):
        try:
            checked_init(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            raise ValueError(explain(error, cls.section)) from None

    cls.__init__ = __init__
    return cls


def _parse_table(words: list[str]) -> dict[str, Any]:
    pairs = [word.partition("=") for word in words]
    if wrong := [word for word, (_, equals, _) in zip(words, pairs, strict=True) if not equals]:
        raise ValueError(f"expected KEY=VALUE, got {' '.join(wrong)}")
    try:
        return {key: yaml.safe_load(value) for key, _, value in pairs}
    except yaml.YAMLError as error:
        raise ValueError(f"expected values as YAML reads them, got {' '.join(words)}") from error


Table = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[KEY=VALUE ...]",
        instance_from_str=_parse_table,
        is_instance=lambda x: isinstance(x, dict),
        str_from_instance=lambda table: [f"{key}={value}" for key, value in table.items()],
    ),
]
"""A table of settings; on the command line min_terms=2 max_terms=3, values as YAML reads them."""


Positive = Annotated[int, Field(gt=0)]


NonNegative = Annotated[int, Field(ge=0)]


PositiveFloat = Annotated[float, Field(gt=0)]


NonNegativeFloat = Annotated[float, Field(ge=0)]


Fraction = Annotated[float, Field(ge=0, le=1)]


Beta = Annotated[float, Field(ge=0, lt=1)]


def explain(error: pydantic.ValidationError, section: str = "") -> str:
    """Each problem in a few words: the field, what was expected, what came."""
    return "; ".join(_describe(problem, section) for problem in error.errors())


def _describe(problem: dict, section: str) -> str:
    field = section + ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{field}: unknown field"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return (
        message
        if problem["type"] == "value_error"
        else f"{field}: {message}, got {problem['input']!r}"
    )
