from pathlib import Path

import pytest

from srt_fast.experiment.command import main
from srt_fast.experiment.grid import GROUPS, collapse_grid


def test_the_grid_names_each_arm_once_and_its_configurations_are_valid():
    grid = collapse_grid()
    assert len({arm.name for arm in grid}) == len(grid)
    assert {arm.group for arm in grid} == set(GROUPS)
    for arm in grid:
        arm.config(seed=0, folder=Path("run"))


def test_help_lists_the_arms(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(f" {arm.name} " in output for arm in collapse_grid())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["--seeds", "1", "1"], "--seeds: expected different numbers from 0 up, got 1 1"),
    ],
)
def test_bad_arguments_are_named(argv, message):
    with pytest.raises(ValueError, match=message):
        main(["collapse", *argv])
