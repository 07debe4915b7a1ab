"""Grids of files: what they run, and what is said about a broken one."""

import json
from pathlib import Path

import pytest

from srt_fast.config import override
from srt_fast.config.recipes import quickstart
from srt_fast.experiment.grid_file import read_grid
from support.paths import ROOT

GRID = """
title: A grid
seeds: [4, 2]
settings: {train: {lr: 0.5, steps: 7}, task.template: "{prompt}"}
models:
  first: {}
  second: {recipe: paper_math, model.path: quickstart, task.kind: arithmetic, train.steps: 9}
tasks:
  easy: {task: {params: {max_digits: 1}}, train.steps: 8}
  hard: {note: long sums, task.params: {max_digits: 3}}
arms:
"""
ARMS = """\
  vote: {note: the vote, reward.kind: majority}
  teacher: {reward: {kind: ema, params: {samples: 2}}, train.steps: 5}
"""
GRID += ARMS


def read(tmp_path, text: str, name: str = "grid.yaml"):
    file = tmp_path / name
    file.write_text(text)
    return read_grid(file)


def test_each_arm_runs_on_each_task_of_each_model(tmp_path):
    grid = read(tmp_path, GRID)
    assert (grid.name, grid.title, grid.seeds) == ("grid", "A grid", (4, 2))
    labels = [
        f"{model}-{task}-{arm}"
        for model in ("first", "second")
        for task in ("easy", "hard")
        for arm in ("vote", "teacher")
    ]
    assert [arm.label for arm in grid.arms] == labels
    configs = [arm.config(4, tmp_path / "run") for arm in grid.arms]
    # An arm comes before a task, a task before a model, a model before the settings.
    assert [config.train.steps for config in configs] == [8, 5, 7, 5, 8, 5, 9, 5]
    expected = {
        "task.template": "{prompt}",
        "task.params": {"max_digits": 3},
        "train": {"lr": 0.5, "steps": 7, "seed": 4},
        "reward.kind": "majority",
        "run_dir": str(tmp_path / "run"),
    }
    assert configs[2] == override(quickstart(), expected)
    assert configs[4].recipe == "paper_math"
    assert grid.arms[0].note == "the vote"


def test_toml_and_a_file_without_tasks(tmp_path):
    text = 'seeds = [1]\n[arms.vote]\nreward.kind = "majority"\n'
    grid = read(tmp_path, text, "small.toml")
    assert [arm.label for arm in grid.arms] == ["vote"]
    assert grid.title == "small"
    json.dumps(grid.values)


@pytest.mark.parametrize("file", sorted((ROOT / "bench" / "grids").iterdir()), ids=lambda f: f.stem)
def test_the_committed_grids_are_valid(file):
    grid = read_grid(file)
    for arm in grid.arms:
        config = arm.config(0, Path("run"))
        assert config.checkpoint.every > 0  # a killed run need not begin anew


def test_the_example_of_the_docs(tmp_path):
    text = (ROOT / "docs" / "rewards.md").read_text()
    grid = read(tmp_path, text.partition("```yaml\n")[2].partition("```")[0])
    assert len(grid.arms) == 12


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "titel:", "titel: unknown field"),
        ("seeds: [4, 2]", "seeds: [4, 4]", "seeds: expected different numbers, got [4, 4]"),
        ("seeds: [4, 2]", "seeds: []", "seeds: "),
        ("lr: 0.5", "lrr: 0.5", "settings: train.lrr: unknown field"),
        ("{lr: 0.5, steps: 7}", "3", "settings: train: expected a table of fields, got 3"),
        ("recipe: paper_math", "recipe: paper", "models.second: recipe: expected a recipe (quick"),
        ("title: A grid", "recipe: none", "recipe: expected a recipe (quickstart,"),
        ("{max_digits: 1}", "1", "tasks.easy: task.params: expected a valid dictionary, got 1"),
        ("reward.kind: majority", "reward.knd: x", "arms.vote: reward.knd: unknown field"),
        ("reward.kind: majority", "reward.kind: x", "arms.vote: reward.kind: expected 'base_rate'"),
        ("reward.kind: majority", "model.dtype: bfloat16", "arms.vote: model.dtype: expected fl"),
        ("train.steps: 5", "train.seed: 5", "arms.teacher: expected fields other than run_dir, "),
        ("  teacher:", "  a/b:", "arms: expected names of letters, digits, _ and . that begin"),
        ("  teacher:", "  vote:", "expected valid YAML, got: vote more than once in a table"),
        ("reward.kind: majority", "trainn.lr: 1", "arms.vote: trainn: unknown field"),
        (ARMS, "", "arms: expected a valid dictionary, got None"),
        (
            "task.kind: arithmetic",
            "task: {kind: jsonl, name: rows.jsonl}",
            "models.second: model.path: the embedded model 'quickstart' only knows",
        ),
        (
            "model.path: quickstart, task.kind: arithmetic",
            "task.gold_column: null",
            "models.second: task.gold_column: expected gold answers, with which the page measures",
        ),
    ],
)
def test_a_broken_file_is_one_error_that_names_the_place(tmp_path, old, new, message):
    assert GRID.count(old) == 1
    with pytest.raises(ValueError) as error:
        read(tmp_path, GRID.replace(old, new))
    assert str(error.value).startswith(f"{tmp_path / 'grid.yaml'}: {message}")
