import json

import pytest

from srt_fast.experiment.grid import collapse_grid
from srt_fast.experiment.page import write_page
from support.experiment import FALLING, RISING, WARNINGS, make_run, save_run


def test_the_page_shows_finished_runs_and_names_missing_ones(tmp_path):
    grid = collapse_grid()
    runs = [
        make_run("majority", FALLING, events=WARNINGS),
        make_run("oracle", RISING),
        make_run("majority_long", FALLING, events=WARNINGS),
    ]
    for run in runs:
        save_run(tmp_path / "runs", run)
    page, numbers_file, *figures = write_page(grid, [0], tmp_path / "runs", tmp_path / "out")
    text = page.read_text()
    assert "| `majority` | the plain vote | 1 | 70.0 (70.0 to 70.0) | 40.0 (40.0 to 40.0) |" in text
    assert text.count("| not run |") == len(grid) - len(runs)
    assert "Rise: not run." in text
    assert "1 of 1 long runs of the plain vote (at step 30)" in text
    assert "in 2 of 2 runs that fell, a median of 6 steps ahead" in text
    numbers = json.loads(numbers_file.read_text())
    assert [run["fall_step"] for run in numbers["runs"]] == [20, None, 20]
    assert numbers["winner"]["arm"] == "majority"
    assert len(figures) == 2
    for figure in figures:
        assert figure.read_bytes().startswith(b"\x89PNG")


def test_without_finished_runs_there_is_no_page(tmp_path):
    with pytest.raises(ValueError, match="expected finished runs of the grid, got none"):
        write_page(collapse_grid(), [0], tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()
