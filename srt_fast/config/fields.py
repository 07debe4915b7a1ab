"""How a section of the configuration is checked, and the types that its fields share."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses
import tyro
import yaml
from pydantic import Field

from srt_fast.errors import URL_USER

Section = TypeVar("Section")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def section(prefix: str) -> Callable[[type[Section]], type[Section]]:
    """Class decorator: a frozen, keyword-only dataclass whose types and ranges pydantic checks.

    prefix stands before the fields' names in errors, such as "train.". A bad value raises a
    ValueError when an instance is made. One error names every bad field.
    """
    make_dataclass = pydantic.dataclasses.dataclass(
        frozen=True,
        kw_only=True,
        config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False),
    )

    def decorate(cls: type[Section]) -> type[Section]:
        dataclass: Any = make_dataclass(cls)
        checked_init = dataclass.__init__

        @functools.wraps(checked_init)
        def __init__(self: Section, *args: Any, **kwargs: Any) -> None:
            try:
                checked_init(self, *args, **kwargs)
            except pydantic.ValidationError as error:
                raise ValueError(explain(error, prefix)) from None

        dataclass.__init__ = __init__
        return dataclass

    return decorate


def field_docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a section, on one line. Reads the source file."""
    [definition] = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef), f"expected the source of a class, got {cls!r}"
    docs = {}
    for field, text in pairwise(definition.body):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(doc))),
            ):
                docs[name] = " ".join(doc.split())
    return docs


def check_no_password(name: str, value: Any) -> None:
    """Raise ValueError for a URL with a user or password, also inside sections and tables.

    A run writes its configuration to config.json and to its report.
    """
    if isinstance(value, str) and URL_USER.search(value):
        raise ValueError(
            f"{name}: expected a URL without user and password, which config.json and the report "
            "would show, got one with them"
        )
    members: Iterable[tuple[Any, Any]] = ()
    if dataclasses.is_dataclass(value):
        members = vars(value).items()
    elif isinstance(value, dict):
        members = value.items()
    elif isinstance(value, list | tuple):
        members = enumerate(value)
    for key, member in members:
        check_no_password(f"{name}.{key}".lstrip("."), member)


def explain(error: pydantic.ValidationError, prefix: str = "") -> str:
    """Each problem in a few words: the field, the expected value, the value it got."""
    return "; ".join(_describe(problem, prefix) for problem in error.errors())


def _describe(problem: Any, prefix: str) -> str:
    field = prefix + ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{field}: unknown field"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if problem["type"] == "value_error":  # of a section's own checks, which name their fields
        return message
    return f"{field}: {message}, got {problem['input']!r}"


def _parse_table(words: list[str]) -> dict[str, Any]:
    malformed = [word for word in words if "=" not in word]
    if malformed:
        raise ValueError(f"expected KEY=VALUE, got {' '.join(malformed)}")
    table = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            table[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"expected values in YAML, got {' '.join(words)}") from error
    return table


Table = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[KEY=VALUE ...]",
        instance_from_str=_parse_table,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda table: [f"{key}={value}" for key, value in table.items()],
    ),
]
"""A table of settings. On the command line: `min_terms=2 max_terms=3`, with values in YAML."""
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
