"""From the command line's arguments to a configuration.

The command line overrides a file, and the file overrides a recipe.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tyro

from srt_fast.config.fields import field_docs
from srt_fast.config.overrides import flatten, override, read_file
from srt_fast.config.recipes import RECIPES, for_model
from srt_fast.config.schema import Config

FILE_SUFFIXES = (".yaml", ".yml", ".toml")
HELP = """\
Beside the fields below there are three options. --config FILE: a YAML or TOML file with the same
fields; `recipe: NAME` in it names the recipe that it changes. --resume RUN_DIR: continue a run that
was stopped. --recipe NAME: the same as the positional argument. The command line overrides the
file, and the file overrides the recipe."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """`[RECIPE] [--config FILE] [--resume RUN_DIR] [--FIELD VALUE ...]`."""

    recipe: str | None  # a recipe, or a model's path or hub id
    file: str | None
    resume: str | None
    overrides: list[str]  # of single fields: ["--train.lr", "1e-4"]


def split_arguments(argv: list[str]) -> Arguments:
    """Separate the recipe, the file and the run folder from the fields. RECIPE may be a file.

    Raises ValueError for two recipes, and for a run folder beside a recipe or file.
    """
    positional = None
    if argv and not argv[0].startswith("-"):
        positional = argv[0]
        argv = argv[1:]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--recipe", "--config", "--resume"):
        parser.add_argument(option)
    options, overrides = parser.parse_known_args(argv)
    if positional and options.recipe:
        raise ValueError(f"expected one recipe, got {positional!r} and --recipe {options.recipe!r}")
    recipe = positional or options.recipe
    file = options.config
    if options.resume is not None and (recipe or file):
        raise ValueError(
            "--resume: expected a run folder alone (it holds its own configuration), "
            "got a recipe or file too"
        )
    is_file = recipe is not None and Path(recipe).suffix in FILE_SUFFIXES
    if is_file and file in (None, recipe):
        file = recipe
        recipe = None
    return Arguments(recipe=recipe, file=file, resume=options.resume, overrides=overrides)


def configure(arguments: Arguments, command: str, changes: dict[str, Any] | None = None) -> Config:
    """The configuration that these arguments describe.

    command: the name for --help. changes: fields that override the recipe and the file, but not the
    command line. Raises ValueError for an unknown recipe and for bad values in the file. Exits for
    --help and for bad values on the command line.
    """
    values = read_file(arguments.file) if arguments.file else {}
    recipe = arguments.recipe or str(values.get("recipe", "quickstart"))
    try:
        config = _base_config(recipe, values)
        config = override(config, flatten(values) | flatten(changes or {}))
    except ValueError as error:
        raise ValueError(f"{arguments.file}: {error}" if arguments.file else str(error)) from None
    return override_fields(config, arguments.overrides, f"{command} {recipe}")


def find_recipe(name: str) -> Config:
    """A recipe by its name, or the settings for a model by its path or hub id."""
    if name in RECIPES:
        return RECIPES[name]()
    if os.sep in name or name.endswith(".gguf") or Path(name).exists():
        return for_model(name)
    raise ValueError(
        f"expected a recipe ({', '.join(RECIPES)}), a YAML or TOML file, a model folder, a .gguf "
        f"file or a hub id (owner/name), got {name!r}"
    )


def override_fields(config: Config, argv: list[str], command: str) -> Config:
    """The configuration with the fields in argv changed. Exits for --help and for bad values."""
    _set_help(config)
    return tyro.cli(
        Config,
        default=config,
        args=argv,
        prog=f"srt-fast {command}",
        description=HELP,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _base_config(recipe: str, values: dict[str, Any]) -> Config:
    """The configuration that a file's values change.

    Removes `recipe` from the values. A file that `srt-fast recipes MODEL` printed keeps it: there
    it is the name of a model's run, and no recipe.
    """
    model = values.get("model")
    is_model_name = recipe == str(values.get("recipe")) and recipe not in RECIPES
    if is_model_name and isinstance(model, dict) and "path" in model:
        return for_model(str(model["path"]))
    values.pop("recipe", None)
    return find_recipe(recipe)


def _set_help(section: Any) -> None:
    """Give tyro the docstrings of all fields. It reads them itself, but keeps their line breaks."""
    docs = field_docs(type(section))
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            _set_help(value)
        else:
            field.metadata = MappingProxyType({"help": docs[field.name]})
