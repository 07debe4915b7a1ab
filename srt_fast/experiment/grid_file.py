"""A grid from a file: arms x tasks x models x seeds.

A YAML or TOML file with these names. All but `arms` may be left out.

    title: Cheaper teachers        of the page
    note: What the page begins with.
    recipe: quickstart             as srt-fast train takes it: a recipe, a model folder, a hub id
    seeds: [0, 1, 2]
    settings: {train.steps: 120}   fields of all runs
    models:                        a run of each model ...
      small: {recipe: smollm}      a model may have a recipe of its own
    tasks:                         ... on each task ...
      gcd: {task: {name: gcd, params: {max_value: 20}}}
    arms:                          ... with each arm and each seed
      ema: {note: labels of a moving average, reward.kind: ema}

What stands beside `recipe` and `note` are fields of srt-fast train, dotted or nested. An arm's
value comes before a task's, a task's before a model's, a model's before that of `settings`.

The file may grow: a run's folder is MODEL-TASK-ARM-seedN, without a model or task if the file has
none of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from srt_fast.config import override
from srt_fast.config.arguments import find_recipe
from srt_fast.config.fields import NonNegative, Table, section
from srt_fast.config.overrides import flatten, read_file
from srt_fast.experiment.grid import Arm, Grid

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")
"""What names a folder. Parts of a folder's name are joined by "-"."""
OWN_FIELDS = ("run_dir", "train.seed", "recipe")
"""Fields that no place may set: seeds and recipe have their own, and a run its folder."""

Layers = dict[str, dict[str, Any]]
"""Flat changes, by where they stand in the file: "arms.ema"."""


@section("")
class GridFile:
    """What a file holds."""

    title: str = ""
    note: str = ""
    recipe: str = "quickstart"
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (0, 1, 2)
    settings: Table = Field(default_factory=dict)
    models: dict[str, Table] = Field(default_factory=dict)
    tasks: dict[str, Table] = Field(default_factory=dict)
    arms: Annotated[dict[str, Table], Field(min_length=1)]

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected different numbers, got {list(self.seeds)}")
        for part in ("models", "tasks", "arms"):
            for name in getattr(self, part):
                if not NAME.fullmatch(name):
                    raise ValueError(
                        f"{part}: expected names of letters, digits, _ and . that begin with a "
                        f"letter or digit, got {name!r}"
                    )


def read_grid(path: str | Path) -> Grid:
    """The grid of a file. Its name is the file's, without the suffix.

    Raises ValueError, which names the file and where in it: for a bad name, an unknown field or
    recipe, a bad value, settings that do not fit together, and tasks without gold answers.
    """
    path = Path(path)
    values = read_file(path)
    try:
        file = GridFile(**{str(key): value for key, value in values.items()})
        arms = _make_arms(file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Grid(
        name=path.stem,
        page="arms",
        arms=tuple(arms),
        seeds=file.seeds,
        title=file.title or path.stem,
        note=file.note,
        values=values,
    )


def _make_arms(file: GridFile) -> list[Arm]:
    arms = []
    for model in file.models or [""]:
        for task in file.tasks or [""]:
            for arm in file.arms:
                arms.append(_make_arm(file, model, task, arm))
    return arms


def _make_arm(file: GridFile, model: str, task: str, name: str) -> Arm:
    model_values = dict(file.models.get(model, {}))
    recipe = model_values.pop("recipe", file.recipe)
    arm_values = dict(file.arms[name])
    note = str(arm_values.pop("note", ""))
    layers = {
        "settings": file.settings,
        f"models.{model}": model_values,
        f"tasks.{task}": file.tasks.get(task, {}),
        f"arms.{name}": arm_values,
    }
    flat = {place: _flat_layer(place, values) for place, values in layers.items()}
    changes: dict[str, Any] = {}
    for layer in flat.values():
        changes |= layer
    arm = Arm(
        name=name,
        group="",
        changes=changes,
        note=note,
        recipe=str(recipe),
        place="-".join(part for part in (model, task) if part),
    )
    _check(arm, flat, f"models.{model}: " if "recipe" in file.models.get(model, {}) else "")
    return arm


def _flat_layer(place: str, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of one place in the file. A note there is for the file's reader."""
    try:
        flat = flatten({key: value for key, value in values.items() if key != "note"})
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    own = [name for name in OWN_FIELDS if name in flat]
    if own:
        raise ValueError(
            f"{place}: expected fields other than {', '.join(OWN_FIELDS)}, got {', '.join(own)}"
        )
    return flat


def _check(arm: Arm, layers: Layers, recipe_place: str) -> None:
    """Make the arm's configuration. An error names the place of the field that it is about."""
    try:
        recipe = find_recipe(arm.recipe)
    except ValueError as error:
        raise ValueError(f"{recipe_place}recipe: {error}") from None
    try:
        config = override(recipe, arm.changes)
        if not config.task.has_gold_source:
            raise ValueError(
                "task.gold_column: expected gold answers, with which the page measures, got none"
            )
    except ValueError as error:
        field = str(error).partition(":")[0]
        places = [place for place, layer in layers.items() if _is_about(field, layer)]
        place = places[-1] if places else f"arms.{arm.name}"
        raise ValueError(f"{place}: {error}") from None


def _is_about(field: str, layer: dict[str, Any]) -> bool:
    """Whether a place sets this field, a part of it, or the table that it stands in."""
    return any(f"{field}.".startswith(f"{n}.") or f"{n}.".startswith(f"{field}.") for n in layer)
