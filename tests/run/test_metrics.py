"""Metrics and samples: no row is lost or doubled, TensorBoard and trackers continue their runs."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from srt_fast.config import LogConfig
from srt_fast.files import read_rows
from srt_fast.run.metrics import MetricsWriter

FILES_ONLY = LogConfig(tensorboard=False)


def write_steps(
    run_dir: Path, steps: Iterable[int], resume_step: int | None, log: LogConfig = FILES_ONLY
) -> MetricsWriter:
    writer = MetricsWriter(run_dir, log, resume_step)
    for step in steps:
        writer.log(step, {"loss": step / 10})
        writer.log_samples(step, [{"prompt": "1+1=", "completion": f"{step}"}] * 2)
    return writer


def steps_of(path: Path) -> list[int]:
    return [row["step"] for row in read_rows(path)]


def test_resume_after_kill_doubles_nothing(tmp_path, caplog):
    metrics = tmp_path / "metrics.jsonl"
    samples = tmp_path / "samples.jsonl"
    write_steps(tmp_path, range(1, 8), None)  # never closed, as after kill -9: each row is flushed
    first_lines = metrics.read_bytes().splitlines()[:5]
    for path in (metrics, samples):
        with open(path, "ab") as file:
            file.write(b'{"step": 8, "kind": "tr\xc3')
    assert steps_of(metrics) == list(range(1, 8))
    assert "skipped 1 half-written line" in caplog.text
    write_steps(tmp_path, range(6, 11), 5).close()
    assert steps_of(metrics) == list(range(1, 11))
    assert steps_of(samples) == sorted([*range(1, 11)] * 2)
    assert metrics.read_bytes().splitlines()[:5] == first_lines
    assert not list(tmp_path.glob(".writing-*"))


def test_a_new_row_does_not_join_a_last_row_without_newline(tmp_path):
    write_steps(tmp_path, [1, 2], None).close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write_steps(tmp_path, [3], 2).close()
    assert steps_of(path) == [1, 2, 3]


def test_nan_and_infinity_become_null(tmp_path):
    values = {"loss": float("nan"), "grad_norm": float("inf"), "gold": None, "note": "x\u2028y"}
    expected = {"loss": None, "grad_norm": None, "gold": None, "note": "x\u2028y"}
    MetricsWriter(tmp_path, FILES_ONLY, None).log(1, values, kind="event")
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=pytest.fail)
    assert {name: row[name] for name in values} == expected


def test_errors_name_what_was_expected(tmp_path, monkeypatch):
    old_run = tmp_path / "old"
    writer = write_steps(old_run, [1], None)
    with pytest.raises(
        ValueError, match="kind: expected one of train, eval, monitor, event, got 'test'"
    ):
        writer.log(2, {}, kind="test")
    with pytest.raises(ValueError, match="got step"):
        writer.log(2, {"step": 3})
    with pytest.raises(ValueError, match="expected a new run folder"):
        MetricsWriter(old_run, FILES_ONLY, None)
    (old_run / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(ValueError, match="metrics.jsonl:2: expected one JSON object"):
        read_rows(old_run / "metrics.jsonl")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="log.tracker: .*pip install wandb"):
        MetricsWriter(tmp_path, LogConfig(tensorboard=False, tracker="wandb"), None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="log.tensorboard: .*pip install tensorboard"):
        MetricsWriter(tmp_path, LogConfig(), None)


def test_tensorboard_shows_each_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_steps(tmp_path, range(1, 8), None, LogConfig()).close()
    write_steps(tmp_path, range(6, 9), 5, LogConfig()).close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 9))


class Tracker:
    """Stands for the module of a tracker, and records the calls."""

    def __init__(self):
        self.calls = []

    def init(self, **settings):
        self.calls.append(settings)

    def log(self, values, step):
        self.calls.append((values, step))

    def finish(self):
        self.calls.append("finish")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_tracker_continues_its_own_run(tmp_path, monkeypatch, name):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, name, tracker)
    log = LogConfig(tensorboard=False, tracker=name)
    write_steps(tmp_path, [1], None, log).close()
    write_steps(tmp_path, [2], 1, log).close()
    first_settings, row, end, second_settings, *_ = tracker.calls
    assert row == ({"train/loss": 0.1}, 1)
    assert end == "finish"
    assert first_settings["resume"] == "never"
    assert first_settings | {"resume": "allow"} == second_settings
    assert first_settings["project"] == "srt-fast"
    assert first_settings["name"] == tmp_path.name
    assert ("id" in first_settings) == (name == "wandb")
