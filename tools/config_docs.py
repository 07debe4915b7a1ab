"""The tables of docs/configuration.md, generated from srt_fast/config when the site is built.

MkDocs loads this file as a hook (mkdocs.yml), so the tables cannot go stale.
`python tools/config_docs.py` prints them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pydantic

from srt_fast.config import Config
from srt_fast.config.fields import field_docs

MARKER = "<!-- the tables of tools/config_docs.py -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for every page. Returns the page that is rendered.

    Links to bench/results, which work in the repository, point to their copies on the site.
    """
    if MARKER in markdown:
        markdown = markdown.replace(MARKER, configuration_tables())
    return markdown.replace("](../bench/results/", "](results/")


def configuration_tables() -> str:
    """A heading, a sentence and a table for each section of a run's configuration."""
    root = pydantic.TypeAdapter(Config).json_schema()
    parts = ["## Top level\n", _table(Config(), root, root["$defs"])]
    for name, section in _sections(Config()):
        schema = root["$defs"][type(section).__name__]
        parts += [
            f"\n## {name}\n",
            f"{inspect.getdoc(section)}\n",
            _table(section, schema, root["$defs"]),
        ]
    return "\n".join(parts)


def _sections(owner: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The sections in a section, with their dotted names, and the sections in these."""
    for field in fields(owner):
        value = getattr(owner, field.name)
        if is_dataclass(value):
            yield prefix + field.name, value
            yield from _sections(value, f"{prefix}{field.name}.")


def _table(section: Any, schema: dict, definitions: dict) -> str:
    """The fields of a section that are no sections themselves."""
    docs = field_docs(type(section))
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in fields(section):
        name = field.name
        if is_dataclass(getattr(section, name)):
            continue
        entry = schema["properties"][name]
        type_name = _type_name(entry, definitions)
        default = _default(entry)
        rows.append(f"| `{name}` | {type_name} | {default} | {_escape(docs.get(name, ''))} |")
    return "\n".join(rows) + "\n"


def _type_name(entry: dict, definitions: dict) -> str:
    """A JSON schema's type in words, as Markdown."""
    if "$ref" in entry:
        return _type_name(definitions[entry["$ref"].split("/")[-1]], definitions)
    if "anyOf" in entry:
        return " or ".join(_type_name(option, definitions) for option in entry["anyOf"])
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "prefixItems" in entry:
        return f"{len(entry['prefixItems'])} x {_type_name(entry['prefixItems'][0], definitions)}"
    if entry["type"] == "array":
        return f"list of {_type_name(entry['items'], definitions)}"
    names = {
        "string": "str",
        "integer": "int",
        "number": "float",
        "boolean": "bool",
        "object": "table",
        "null": "None",
    }
    return (names[entry["type"]] + _bounds(entry)).replace(" ", "&nbsp;")


def _bounds(entry: dict) -> str:
    """Such as " > 0" or " in [0, 1)"."""
    low = entry.get("minimum", entry.get("exclusiveMinimum"))
    high = entry.get("maximum", entry.get("exclusiveMaximum"))
    if low is None and high is None:
        return ""
    if low is None:
        return f" {'≤' if 'maximum' in entry else '&lt;'} {high:g}"
    if high is None:
        return f" {'≥' if 'minimum' in entry else '&gt;'} {low:g}"
    opening = "[" if "minimum" in entry else "("
    closing = "]" if "maximum" in entry else ")"
    return f" in {opening}{low:g}, {high:g}{closing}"


def _default(entry: dict) -> str:
    """The default as YAML and the command line take it."""
    value = entry.get("default")
    if value is None:
        return "none" if "default" in entry else "empty"
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{value}`" if isinstance(value, bool) else f"`{json.dumps(value)}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    print(configuration_tables())
