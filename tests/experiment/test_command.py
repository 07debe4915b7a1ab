from pathlib import Path

import pytest

from srt_fast.experiment.command import main
from srt_fast.experiment.grid import GRIDS, GROUPS


def test_the_grids_name_each_arm_once_and_their_configurations_are_valid():
    grids = [grid() for grid in GRIDS.values()]
    for grid in grids:
        assert len({arm.name for arm in grid}) == len(grid)
        for arm in grid:
            arm.config(seed=0, folder=Path("run"))
    assert {arm.group for grid in grids for arm in grid} == set(GROUPS)


def test_help_lists_the_arms(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(f" {arm.name} " in output for grid in GRIDS.values() for arm in grid())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["--seeds", "1", "1"], "--seeds: expected different numbers from 0 up, got 1 1"),
        (["--arms", "frozen", "soft"], "--arms: expected some of majority, .*, got frozen, soft"),
    ],
)
def test_bad_arguments_are_named(argv, message):
    with pytest.raises(ValueError, match=message):
        main(["alarm", *argv])
