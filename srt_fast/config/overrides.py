"""TODO."""

from __future__ import annotations

from typing import Any

import pydantic
import pydantic.dataclasses

from srt_fast.config.fields import explain
from srt_fast.config.schema import Config

_adapter = pydantic.TypeAdapter(Config)


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, for JSON and YAML."""
    return _adapter.dump_python(config, mode="json")


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of to_dict. ValueError names each unknown field, wrong type and impossible value."""
    try:
        return _adapter.validate_python(values)
    except pydantic.ValidationError as error:
        raise ValueError(explain(error)) from None


def override(config: Config, changes: dict[str, Any]) -> Config:
    """A copy with some fields changed. Keys are nested ({"train": {"lr": 1e-4}}) or dotted ({"train.lr": 1e-4}).

    ValueError names each unknown field, wrong type and impossible value.
    """
    values = to_dict(config)
    for key, value in changes.items():
        *path, leaf = key.split(".")
        _merge(values, _nest(path, {leaf: value}), "")
    return from_dict(values)


def _nest(path: list[str], value: Any) -> Any:
    return {path[0]: _nest(path[1:], value)} if path else value


def _merge(values: dict, changes: dict, prefix: str) -> None:
    for key, value in changes.items():
        section = isinstance(values.get(key), dict) and key in Config.__dataclass_fields__
        if section and not isinstance(value, dict):
            raise ValueError(f"{prefix}{key}: expected a table of fields, got {value!r}")
        if section:
            _merge(values[key], value, f"{prefix}{key}.")
        else:
            values[key] = value
