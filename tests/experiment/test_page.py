import json

import pytest

from srt_fast.experiment.grid import alarm_grid, collapse_grid
from srt_fast.experiment.page import write_page
from support.experiment import FALLING, RISING, WARNINGS, make_run, save_run

SCORES = {2 * look: 0.8 if look < 5 else 0.4 for look in range(12)}
"""Probe scores by step: a fall at step 10."""


def test_the_page_shows_finished_runs_and_names_missing_ones(tmp_path):
    grid = collapse_grid()
    runs = [
        make_run("majority", FALLING, events=WARNINGS, probe_scores=SCORES),
        make_run("oracle", RISING, probe_scores=dict.fromkeys(range(0, 31, 2), 0.9)),
        make_run("majority_long", FALLING, events=WARNINGS),
    ]
    for run in runs:
        save_run(tmp_path / "runs", run)
    page, numbers_file, *figures = write_page(
        "collapse", grid, [0], tmp_path / "runs", tmp_path / "out"
    )
    text = page.read_text()
    assert "| `majority` | the plain vote | 1 | 70.0 (70.0 to 70.0) | 40.0 (40.0 to 40.0) |" in text
    assert text.count("| not run |") == len(grid) - len(runs)
    assert "Rise: not run." in text
    assert "1 of 1 long runs of the plain vote (at step 30)" in text
    assert "rule `10,000 looks` it came before the fall in 1 of 1 runs that fell" in text
    numbers = json.loads(numbers_file.read_text())
    assert [run["fall_step"] for run in numbers["runs"]] == [20, None, 20]
    assert numbers["winner"]["arm"] == "majority"
    assert len(figures) == 2
    for figure in figures:
        assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_page_of_the_alarm(tmp_path):
    save_run(tmp_path, make_run("majority", FALLING, events=WARNINGS, probe_scores=SCORES))
    save_run(tmp_path, make_run("ema_1000", RISING, probe_scores={0: 0.9, 2: 0.9, 4: 0.6}))
    page, numbers_file = write_page("alarm", alarm_grid(), [0], tmp_path, tmp_path)
    assert "| best look | 1 | 1 | 0 | 0 | 10 | 10 to 10 | 1 | 3 | 1 |" in page.read_text()
    numbers = json.loads(numbers_file.read_text())
    assert [row["false_alarms"] for row in numbers["alarm"]] == [0, 0, 1]


def test_without_finished_runs_there_is_no_page(tmp_path):
    with pytest.raises(ValueError, match="expected finished runs of the grid, got none"):
        write_page("collapse", collapse_grid(), [0], tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()
