import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from srt_fast.config import to_dict
from srt_fast.experiment import runner
from srt_fast.experiment.grid import Arm
from srt_fast.experiment.runner import PlannedRun, run_grid
from srt_fast.run.interrupts import RunInterrupted


@pytest.fixture
def tiny_arm(tiny_config) -> Arm:
    sections = {
        name: value for name, value in to_dict(tiny_config).items() if isinstance(value, dict)
    }
    return Arm("tiny", "reward", sections | {"train.steps": 2}, "two steps of the tiny model")


def test_a_grid_runs_once_and_failures_do_not_end_it(tiny_arm, tmp_path, monkeypatch, capfd):
    task = {"kind": "jsonl", "name": str(tmp_path / "missing.jsonl"), "params": {}}
    without_data = Arm("without_data", "reward", tiny_arm.changes | {"task": task}, "")
    unknown = Arm("unknown", "reward", {"reward.kind": "no such kind"}, "")
    failures = run_grid([without_data, unknown, tiny_arm], [3], tmp_path, jobs=2)
    assert sorted(failures) == ["unknown-seed3", "without_data-seed3"]
    assert failures["without_data-seed3"].startswith("error: ")
    assert "missing.jsonl" in failures["without_data-seed3"]
    assert failures["unknown-seed3"].startswith("arm unknown: reward.kind: expected")
    summary = json.loads((tmp_path / "tiny-seed3" / "summary.json").read_text())
    assert (summary["steps"], summary["seed"]) == (2, 3)
    assert "tiny-seed3: " in capfd.readouterr().err

    def fail(*_, **__):
        pytest.fail("a finished run was started again")

    monkeypatch.setattr(subprocess, "Popen", fail)
    assert run_grid([tiny_arm], [3], tmp_path, jobs=1) == {}
    other = Arm("tiny", "reward", tiny_arm.changes | {"train.lr": 0.5}, "")
    message = r"tiny-seed3 holds .* another configuration \(train.lr is 0.001, not 0.5\); delete it"
    with pytest.raises(ValueError, match=message):
        run_grid([other], [3], tmp_path, jobs=1)


@pytest.mark.parametrize(
    ("returncode", "reason"),
    [(2, "error: why"), (143, "stopped by SIGTERM"), (-9, "stopped by SIGKILL")],
    ids=["bad input", "saved", "killed"],
)
def test_failure_reasons(tmp_path, returncode, reason):
    log = tmp_path / "run.log"
    log.write_text("self-training 3/60\nerror: why\n\n")
    assert runner._failure_reason(returncode, log) == reason


def test_a_run_that_has_begun_is_resumed(tiny_arm, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command[3:]))
    run = PlannedRun(tiny_arm, 0, tmp_path)
    run.start(threads=1)
    run.folder.mkdir()
    config = tiny_arm.config(0, run.folder)
    (run.folder / "config.json").write_text(json.dumps(to_dict(config)))
    assert run.has_begun()
    assert not run.has_finished()
    run.start(threads=1)
    assert commands == [["train", f"{run.folder}.yaml"], ["train", "--resume", str(run.folder)]]


SAVE_ON_SIGTERM = """
import pathlib, signal, sys, time

def save(*_):
    time.sleep(0.3)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
time.sleep(60)
"""


def test_ctrl_c_makes_the_runs_save_and_waits_for_them(tiny_arm, tmp_path, monkeypatch):
    """Each run gets one signal, though a terminal's Ctrl-C goes to all foreground processes."""
    file = tmp_path / "saved"

    def start(run: PlannedRun, threads: int) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", SAVE_ON_SIGTERM, str(file)], start_new_session=True
        )

    monkeypatch.setattr(PlannedRun, "start", start)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.05)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(RunInterrupted, match="SIGINT"):
        run_grid([tiny_arm], [0], tmp_path, jobs=1)
    assert file.exists()
