import json
from pathlib import Path

import pytest

from srt_fast.config import override
from srt_fast.config.overrides import to_dict
from srt_fast.experiment.command import main
from srt_fast.experiment.grid import GROUPS, collapse_grid
from srt_fast.experiment.grid_file import read_grid

GRID = """
tasks: {one: {task.params: {max_digits: 1}}, two: {task.params: {max_digits: 2}}}
arms: {majority: {reward.kind: majority}}
"""


def test_the_grid_names_each_arm_once_and_its_configurations_are_valid():
    arms = collapse_grid().arms
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in arms:
        arm.config(seed=0, folder=Path("run"))
    assert {arm.group for arm in arms} == set(GROUPS)


def test_help_lists_the_arms(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(f" {arm.name} " in output for arm in collapse_grid().arms)


def test_runs_with_other_settings_are_not_shown(tmp_path):
    """A page alone refuses them too."""
    file = tmp_path / "grid.yaml"
    file.write_text(GRID)
    [arm, *_] = read_grid(file).arms
    folder = tmp_path / "runs" / f"{arm.label}-seed0"
    folder.mkdir(parents=True)
    config = override(arm.config(0, folder), {"train.lr": 0.5})
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"another configuration \(train.lr is 0.5, not 0.0001\)"):
        main([str(file), "--runs", str(tmp_path / "runs"), "--report-only"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["collapse", "--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["collapse", "--threads", "0"], "--threads: expected at least 1, got 0"),
        (["collapse", "--seeds", "1", "1"], "--seeds: expected different numbers from 0 up, got 1"),
        (["collapse", "--arms", "no"], "--arms: expected some of rise_majority, .*, got no"),
        (["grid.yaml", "--arms", "two"], "some of majority, one-majority, two-majority, got two"),
        (["nowhere.yaml"], "expected collapse or a YAML or TOML file, got 'nowhere.yaml'"),
    ],
)
def test_bad_arguments_are_named(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID)
    with pytest.raises(ValueError, match=message):
        main(argv)
