import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from srt_fast.config import to_dict
from srt_fast.experiment import analysis, runner
from srt_fast.experiment.analysis import ALARM, Run, measure
from srt_fast.experiment.command import main
from srt_fast.experiment.grid import GROUPS, Arm, collapse_grid
from srt_fast.experiment.page import write_page
from srt_fast.experiment.runner import PlannedRun, run_grid
from srt_fast.run.interrupts import RunInterrupted


def rows(
    accuracy: dict[int, float],
    reward: float = 0.6,
    events=(),
    held_out: dict[int, float] | None = None,
    seconds: float = 1.0,
) -> list[dict]:
    """A run's rows: evaluations at these steps, a training row per step, events (step, name, values) after their step."""
    found = []
    for step in range(max(accuracy) + 1):
        if step:
            found.append(
                {
                    "step": step,
                    "kind": "train",
                    "pseudo_reward": 0.97 if step > 20 else reward,
                    "top_answer_share": 0.25,
                    "label_accuracy": 0.5,
                    "seconds": seconds,
                }
            )
        if step in (held_out or {}):
            best = max((at for at in held_out if at <= step), key=lambda at: (held_out[at], -at))
            found.append(
                {"step": step, "kind": "monitor", "held_out": held_out[step], "best_step": best}
            )
        found += [
            {"step": step, "kind": "event", "event": name, **values}
            for at, name, values in events
            if at == step
        ]
        if step in accuracy:
            found.append(
                {
                    "step": step,
                    "kind": "eval",
                    "pass1": accuracy[step],
                    "maj": accuracy[step] + 0.05,
                }
            )
    return found


def made(arm: str, accuracy: dict[int, float], seed: int = 0, **more) -> Run:
    first, *_, last = accuracy.values()
    summary = {
        "seconds": 9.0,
        "pass1_start": first,
        "pass1_end": last,
        "maj_start": first + 0.05,
        "maj_end": last + 0.05,
    }
    return Run(arm, seed, rows(accuracy, **more), summary)


FALLING = {0: 0.50, 10: 0.70, 20: 0.55, 30: 0.40}
RISING = {0: 0.50, 10: 0.70, 20: 0.80, 30: 0.90}
WARNED = [
    (12, "warning", {"cause": "length"}),
    (14, "alarm", {"causes": "length,kl"}),
    (16, "alarm", {"causes": "kl"}),
]


def save(root: Path, run: Run) -> None:
    folder = root / f"{run.arm}-seed{run.seed}"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.rows))
    (folder / "summary.json").write_text(json.dumps(run.summary))


def test_a_run_that_rises_falls_and_collapses():
    """The worked example of analysis.py."""
    found = measure(
        made("majority", FALLING, events=WARNED, held_out={5: 0.7, 10: 0.9, 13: 0.9, 15: 1.0})
    )
    assert (found.start, found.peak, found.peak_step, found.end) == (0.50, 0.70, 10, 0.40)
    assert (found.fell, found.collapsed, found.warnings) == (20, 30, {"length": 12, ALARM: 14})
    assert (found.chosen, found.chosen_pass1) == (10, 0.70)
    assert (
        found.pseudo_reward == pytest.approx(0.97)
        and found.label_accuracy == 0.5
        and found.action is None
    )


def test_what_does_not_happen_is_none():
    found = measure(made("oracle", RISING))
    assert (found.fell, found.collapsed, found.chosen, found.warnings) == (None, None, None, {})
    below_but_unsure = made("majority", {0: 0.5, 10: 0.45, 20: 0.45}, reward=0.9)
    assert measure(below_but_unsure).collapsed is None and measure(below_but_unsure).fell is None


def test_what_the_monitor_did_is_told():
    acts = [(12, "rolled_back", {"best_step": 5}), (28, "stopped", {"best_step": 10})]
    found = measure(made("majority_rollback", FALLING, events=acts))
    assert (found.action, found.restored, found.warnings) == (
        "rolled back at 12, stopped at 28",
        10,
        {},
    )


def test_warnings_are_counted_before_the_fall_after_it_and_where_there_was_none():
    arms = [
        Arm(name, group, {}, "")
        for name, group in (("majority", "collapse"), ("oracle", "collapse"), ("stop", "action"))
    ]
    late = [(25, "alarm", {"causes": "kl"})]
    measured = [
        measure(run)
        for run in (
            made("majority", FALLING, 0, events=WARNED),
            made("majority", FALLING, 1, events=late),
            made("majority", FALLING, 2),
            made("oracle", RISING, 0, events=late),
            made("oracle", RISING, 1),
            made("stop", RISING, 0, events=WARNED),
        )
    ]
    alarm, length = analysis.warning_times(arms, measured)
    assert alarm == {
        "signal": ALARM,
        "fell": 3,
        "before": 1,
        "late": 1,
        "never": 1,
        "stood": 2,
        "false_alarms": 1,
        "lead": {"median": 0.5, "min": -5, "max": 6},
    }
    assert (length["signal"], length["before"], length["never"], length["false_alarms"]) == (
        "length",
        1,
        2,
        0,
    )


def test_rise_rescue_and_the_winner():
    arms = [
        Arm(name, group, {}, "")
        for name, group in (
            ("majority", "collapse"),
            ("oracle", "collapse"),
            ("soft", "design"),
            ("frozen", "design"),
            ("ema", "design"),
        )
    ]
    measured = [
        measure(run)
        for run in (
            made("rise_majority", {0: 0.5, 10: 0.86}),
            made("rise_oracle", {0: 0.5, 10: 0.9}),
            made("majority", FALLING, 0),
            made("majority", FALLING, 1),
            made("oracle", RISING, 0),
            made("oracle", RISING, 1),
            made("soft", {0: 0.5, 10: 0.7}, 0, seconds=2.0),
            made("soft", {0: 0.5, 10: 0.8}, 1, seconds=2.0),
            made("frozen", {0: 0.5, 10: 0.9}, 0),
        )
    ]
    [rise] = analysis.rise(measured)
    assert rise["share"] == pytest.approx(0.9) and rise["maj_end"] > rise["maj_start"]
    compared = {row["arm"]: row for row in analysis.compare(arms, measured)}
    assert (
        compared["majority"] | {"collapsed": 2, "fell": 2, "ended_below_start": 2, "runs": 2}
        == compared["majority"]
    )
    assert compared["soft"]["end"] == {"mean": pytest.approx(0.75), "min": 0.7, "max": 0.8}
    assert (
        compared["soft"]["relative_seconds"] == 2
        and compared["ema"]["runs"] == 0
        and compared["ema"]["end"] is None
    )
    winner = analysis.winner(list(compared.values()), 2)  # frozen ended higher, on one seed
    assert (winner["arm"], winner["next"]) == ("soft", "majority") and winner[
        "margin"
    ] == pytest.approx(0.35)


def test_early_stopping_is_compared_with_the_best_evaluation():
    stopped = [*WARNED[:2], (14, "stopped", {"best_step": 5})]
    run = made("majority_stop", {0: 0.5, 10: 0.66, 14: 0.64}, events=stopped)
    plain = made("majority", FALLING, events=WARNED, held_out={8: 0.9})
    chosen, restored = analysis.early_stopping([measure(plain), measure(run)])
    assert (chosen["step"], chosen["pass1"], chosen["best"], chosen["alarm"]) == (8, 0.50, 0.70, 14)
    assert (restored["step"], restored["pass1"], restored["best"]) == (5, 0.64, 0.70) and restored[
        "loss"
    ] == pytest.approx(0.06)


def test_the_page_shows_what_was_run_and_what_was_not(tmp_path):
    with pytest.raises(ValueError, match="expected finished runs"):
        write_page(collapse_grid(), [0], tmp_path / "runs", tmp_path / "out")
    for run in (
        made("majority", FALLING, events=WARNED),
        made("oracle", RISING),
        made("majority_long", FALLING, events=WARNED),
    ):
        save(tmp_path / "runs", run)
    page, numbers, *figures = write_page(collapse_grid(), [0], tmp_path / "runs", tmp_path / "out")
    text, found = page.read_text(), json.loads(numbers.read_text())
    assert "| `majority` | the plain vote | 1 | 70.0 (70.0 to 70.0) | 40.0 (40.0 to 40.0) |" in text
    assert text.count("| not run |") == len(collapse_grid()) - 3 and "Rise: not run." in text
    assert "1 of 1 long runs of the plain vote (at step 30)" in text
    assert "in 2 of 2 runs that fell, a median of 6 steps ahead" in text
    assert [run["fell"] for run in found["runs"]] == [20, None, 20] and found["winner"][
        "arm"
    ] == "majority"
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)


def test_the_grid_names_each_arm_once_and_lists_them(capsys):
    names = [arm.name for arm in collapse_grid()]
    assert len(set(names)) == len(names) and {arm.group for arm in collapse_grid()} == set(GROUPS)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    listed = capsys.readouterr().out
    assert all(f" {name} " in listed for name in names)


@pytest.fixture
def tiny_arm(tiny_config) -> Arm:
    sections = {
        name: value for name, value in to_dict(tiny_config).items() if isinstance(value, dict)
    }
    return Arm("tiny", "design", sections | {"train.steps": 2}, "two steps of the tiny model")


def test_a_grid_is_run_once_and_failures_do_not_end_it(tiny_arm, tmp_path, monkeypatch, capfd):
    missing = {"task": {"kind": "jsonl", "name": str(tmp_path / "none.jsonl"), "params": {}}}
    broken = Arm("broken", "design", tiny_arm.changes | missing, "")
    unknown = Arm("unknown", "design", {"reward.kind": "none such"}, "")
    failures = run_grid([broken, unknown, tiny_arm], [3], tmp_path, jobs=2)
    assert list(sorted(failures)) == ["broken-seed3", "unknown-seed3"]
    assert (
        failures["broken-seed3"].startswith("error: ") and "none.jsonl" in failures["broken-seed3"]
    )
    assert failures["unknown-seed3"].startswith("arm unknown: reward.kind: expected")
    summary = json.loads((tmp_path / "tiny-seed3" / "summary.json").read_text())
    assert (summary["steps"], summary["seed"]) == (2, 3)
    assert "tiny-seed3: " in capfd.readouterr().err

    monkeypatch.setattr(
        subprocess, "Popen", lambda *_, **__: pytest.fail("a finished run was started")
    )
    assert run_grid([tiny_arm], [3], tmp_path, jobs=1) == {}
    other = Arm("tiny", "design", tiny_arm.changes | {"train.lr": 0.5}, "")
    with pytest.raises(
        ValueError,
        match=r"tiny-seed3 holds .* another configuration \(train.lr is 0.001, not 0.5\); delete it",
    ):
        run_grid([other], [3], tmp_path, jobs=1)


@pytest.mark.parametrize(
    ("returncode", "reason"),
    [(2, "error: why"), (143, "stopped by SIGTERM"), (-9, "stopped by SIGKILL")],
    ids=["bad input", "saved", "killed"],
)
def test_why_a_run_failed(tmp_path, returncode, reason):
    log = tmp_path / "run.log"
    log.write_text("self-training 3/60\nerror: why\n\n")
    assert runner._reason(returncode, log) == reason


def test_a_run_that_was_begun_is_resumed(tiny_arm, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command[3:]))
    run = PlannedRun(tiny_arm, 0, tmp_path)
    run.start(threads=1)
    run.folder.mkdir()
    (run.folder / "config.json").write_text(json.dumps(to_dict(tiny_arm.config(0, run.folder))))
    assert run.begun() and not run.finished()
    run.start(threads=1)
    assert commands == [["train", f"{run.folder}.yaml"], ["train", "--resume", str(run.folder)]]


def test_ctrl_c_has_the_runs_save_and_waits_for_them(tiny_arm, tmp_path, monkeypatch):
    """Each run gets one signal, though a terminal's Ctrl-C goes to all processes of the foreground."""
    code = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), "
        f"pathlib.Path({str(tmp_path / 'saved')!r}).write_text('x'), sys.exit(143))); time.sleep(60)"
    )
    monkeypatch.setattr(
        PlannedRun,
        "start",
        lambda self, threads: subprocess.Popen(
            [sys.executable, "-c", code], start_new_session=True
        ),
    )
    monkeypatch.setattr(runner, "POLL", 0.05)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(RunInterrupted, match="SIGINT"):
        run_grid([tiny_arm], [0], tmp_path, jobs=1)
    assert (tmp_path / "saved").exists()


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
