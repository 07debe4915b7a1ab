"""The tables of docs/configuration.md, generated from srt_fast/config when the site is built.

MkDocs loads this file as a hook (mkdocs.yml), so the tables cannot go stale.
`python tools/config_docs.py` prints them.
"""

from __future__ import annotations

import inspect
import json
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
    top_level = [
        field.name for field in fields(Config) if not is_dataclass(_section_class(field.name))
    ]
    parts = [
        "## Top level\n",
        _table(Config, root, root["$defs"], top_level),
    ]
    for field in fields(Config):
        section = _section_class(field.name)
        if is_dataclass(section):
            schema = root["$defs"][section.__name__]
            names = [entry.name for entry in fields(section)]
            parts += [
                f"\n## {field.name}\n",
                f"{inspect.getdoc(section)}\n",
                _table(section, schema, root["$defs"], names),
            ]
    return "\n".join(parts)


def _section_class(name: str) -> Any:
    """The class of a field of Config: a dataclass where the field is a section."""
    return type(getattr(Config(), name))


def _table(owner: type, schema: dict, definitions: dict, names: list[str]) -> str:
    docs = field_docs(owner)
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name in names:
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
