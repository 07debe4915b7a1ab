"""Changes to a configuration, as nested values, and the files that hold them."""

from __future__ import annotations

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import yaml

from srt_fast.config.fields import explain
from srt_fast.config.schema import Config

_adapter = pydantic.TypeAdapter(Config)


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, for JSON and YAML."""
    return _adapter.dump_python(config, mode="json")


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of to_dict.

    Raises ValueError, which names each unknown field, wrong type and impossible value.
    """
    try:
        return _adapter.validate_python(values)
    except pydantic.ValidationError as error:
        raise ValueError(explain(error)) from None


def override(config: Config, changes: dict[str, Any]) -> Config:
    """A copy of the configuration with some fields changed.

    Keys of changes are nested ({"train": {"lr": 1e-4}}) or dotted ({"train.lr": 1e-4}); of a field
    that comes twice the last one counts. A table such as task.params is replaced as a whole. Raises
    ValueError, which names each unknown field, wrong type and impossible value, and a name inside
    of a table.
    """
    values = to_dict(config)
    for name, value in _flat_fields(changes, config, ""):
        *path, leaf = name.split(".")
        section = values
        for part in path:
            if not isinstance(section.get(part), dict):  # validation will name it
                section[part] = {}
            section = section[part]
        section[leaf] = value
    return from_dict(values)


def flatten(changes: dict[str, Any]) -> dict[str, Any]:
    """Changes in a file, with one dotted name for each field: {"train": {"lr": 1}} is
    {"train.lr": 1}.

    A table such as task.params stays one value. Raises ValueError for a section that is no table,
    a field that comes twice, and a name inside of a table ("task.params.max_digits"), which would
    replace the whole table.
    """
    fields: dict[str, Any] = {}
    for name, value in _flat_fields(changes, Config(), ""):
        if name in fields:
            raise ValueError(f"{name}: expected one value, got it twice")
        fields[name] = value
    return fields


def read_file(path: str | Path) -> dict[str, Any]:
    """The values of a YAML or TOML file, for override.

    Raises ValueError, which names the file, also for a name that comes twice in one table.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"expected a YAML or TOML file, got {str(path)!r}, which does not exist")
    is_toml = path.suffix == ".toml"
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if is_toml else yaml.load(text, _UniqueNames)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        kind = "TOML" if is_toml else "YAML"
        raise ValueError(f"{path}: expected valid {kind}, got: {error}") from None
    if values is None:  # an empty YAML file
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a table of fields, got {type(values).__name__}")
    return values


class _UniqueNames(yaml.SafeLoader):
    """YAML's safe loader. It refuses a name that comes twice in a table, where YAML takes the last.

    TOML refuses it too.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        repeated = [name for name, count in names.items() if count > 1]
        if repeated:
            problem = f"{', '.join(repeated)} more than once in a table"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node


def _flat_fields(changes: dict[str, Any], section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        name, _, rest = str(key).partition(".")  # YAML also has keys that are no text
        inner = getattr(section, name, None)
        if rest and isinstance(inner, dict):
            raise ValueError(
                f"{prefix}{key}: expected the table {prefix}{name} as a whole, got a name inside "
                f"of it; write {name}: {{{rest}: ...}}"
            )
        if not dataclasses.is_dataclass(inner):
            yield f"{prefix}{key}", value
        elif rest:
            yield from _flat_fields({rest: value}, inner, f"{prefix}{name}.")
        elif isinstance(value, dict):
            yield from _flat_fields(value, inner, f"{prefix}{name}.")
        else:
            raise ValueError(f"{prefix}{name}: expected a table of fields, got {value!r}")
