import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from srt_fast.config import to_dict
from srt_fast.experiment import runner
from srt_fast.experiment.grid import Arm
from srt_fast.experiment.runner import PlannedRun, run_grid
from srt_fast.files import read_rows
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
    failures = run_grid([without_data, tiny_arm], [3], tmp_path, jobs=2)
    assert sorted(failures) == ["without_data-seed3"]
    assert failures["without_data-seed3"].startswith("error: ")
    assert "missing.jsonl" in failures["without_data-seed3"]
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


def test_bad_settings_of_a_reward_start_nothing(tiny_arm, tmp_path):
    bad = Arm("bad", "reward", tiny_arm.changes | {"reward.params": {"tau": 1}}, "", place="gcd")
    message = "arm gcd-bad: reward.params: expected none for 'majority', got tau"
    with pytest.raises(ValueError, match=message):
        run_grid([tiny_arm, bad], [0], tmp_path, jobs=1)
    assert not list(tmp_path.glob("*-seed0*"))


def test_a_killed_run_continues(tiny_arm, tmp_path):
    """SIGKILL in the middle. The next call goes on from the last checkpoint."""
    changes = {"train.steps": 20, "checkpoint.every": 2, "monitor.every": 0}
    arm = Arm("tiny", "", tiny_arm.changes | changes, "")
    run = PlannedRun(arm, 0, tmp_path)
    process = run.start(threads=1)
    deadline = time.monotonic() + 60
    while not list(run.folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert run.is_running()
    process.kill()
    process.wait()
    assert not run.is_running() and not run.has_finished()
    assert run_grid([arm], [0], tmp_path, jobs=1) == {}
    assert "resumed from" in run.log.read_text()
    rows = read_rows(run.folder / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 21))


def test_a_run_of_another_process_is_waited_for(tiny_arm, tmp_path, monkeypatch, capfd):
    """Such as one that outlived a killed experiment. It is not started a second time."""
    run = PlannedRun(tiny_arm, 0, tmp_path)
    run.folder.mkdir()
    lock = FileLock(run.folder / ".lock", thread_local=False)  # a timer releases it
    lock.acquire()

    def finish() -> None:
        config = tiny_arm.config(0, run.folder)
        (run.folder / "config.json").write_text(json.dumps(to_dict(config)))
        (run.folder / "summary.json").write_text("{}")
        lock.release()

    def fail(*_, **__):
        pytest.fail("the run was started")

    monkeypatch.setattr(subprocess, "Popen", fail)
    threading.Timer(0.5, finish).start()
    assert run_grid([tiny_arm], [0], tmp_path, jobs=1) == {}
    assert capfd.readouterr().err.count("tiny-seed0 is running in another process") == 1


@pytest.mark.parametrize(
    ("returncode", "reason"),
    [
        (2, "error: why"),
        (255, "error: why"),
        (143, "stopped by SIGTERM"),
        (-9, "stopped by SIGKILL"),
    ],
    ids=["bad input", "no signal", "saved", "killed"],
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
