"""Runs a grid of arms and seeds, a few at a time, each as `srt-fast train` in its own process.

Started again, it continues: a finished run (with summary.json) is left alone. Any other run
continues from its last checkpoint, or from its beginning if there is none.

Each process has its own session. A terminal's Ctrl-C so reaches only this process, which passes it
on once. A run that gets a second signal would leave without saving.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from srt_fast.config import Config, override, to_dict
from srt_fast.experiment.grid import Arm
from srt_fast.experiment.measure import measure, read_run
from srt_fast.run.folder import load_config
from srt_fast.run.interrupts import InterruptHandler, RunInterrupted
from srt_fast.run.progress import RunProgress

POLL_SECONDS = 0.2
"""Time between two checks of the processes."""


@dataclass(frozen=True)
class PlannedRun:
    """An arm with a seed.

    In the folder `root`: the run's folder NAME, its configuration NAME.yaml, and its standard error
    NAME.log.
    """

    arm: Arm
    seed: int
    root: Path

    @property
    def name(self) -> str:
        return f"{self.arm.name}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def log(self) -> Path:
        return self.root / f"{self.name}.log"

    def has_begun(self) -> bool:
        return (self.folder / "config.json").is_file()

    def has_finished(self) -> bool:
        """Whether the run's summary exists.

        Raises ValueError if the folder holds a run of another configuration.
        """
        if not self.has_begun():
            return False
        differences = _differences(self.folder, self.arm.config(self.seed, self.folder))
        if differences:
            raise ValueError(
                f"{self.folder} holds a run of another configuration ({differences}); delete it "
                "or take another --runs"
            )
        return (self.folder / "summary.json").is_file()

    def start(self, threads: int) -> subprocess.Popen:
        """Start or resume the run. Raises ValueError if the arm's configuration is not valid."""
        if self.has_begun():
            arguments = ["--resume", str(self.folder)]
        else:
            config = self.arm.config(self.seed, self.folder)
            file = self.root / f"{self.name}.yaml"
            file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
            arguments = [str(file)]
        with open(self.log, "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "srt_fast.cli", "train", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )


def run_grid(arms: Sequence[Arm], seeds: Sequence[int], root: Path, jobs: int) -> dict[str, str]:
    """Run what is not finished: all arms of a seed before the next seed.

    jobs: runs at the same time. Returns the reason of each run that failed, by the run's name.
    Raises ValueError, before anything starts, for a folder with another configuration. Raises
    RunInterrupted for SIGINT or SIGTERM, after the runs have saved.
    """
    runs = [PlannedRun(arm, seed, root) for seed in seeds for arm in arms]
    unfinished = [run for run in runs if not run.has_finished()]
    root.mkdir(parents=True, exist_ok=True)
    with InterruptHandler() as signals, RunProgress() as progress:
        if len(unfinished) < len(runs):
            finished = len(runs) - len(unfinished)
            progress.note(f"{finished} of {len(runs)} runs have finished already")
        if not unfinished:
            return {}
        return _Workers(unfinished, jobs, progress, signals).run_all()


class _Workers:
    """The processes that run, and the queue of runs for them."""

    def __init__(
        self, runs: list[PlannedRun], jobs: int, progress: RunProgress, signals: InterruptHandler
    ) -> None:
        self.queue = deque(runs)
        self.total = len(runs)
        self.jobs = jobs
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.running: list[tuple[PlannedRun, subprocess.Popen]] = []
        self.failures: dict[str, str] = {}
        self.progress = progress
        self.signals = signals

    def run_all(self) -> dict[str, str]:
        """Run the queue to its end. Returns the reason of each failure, by the run's name."""
        self.progress.phase("runs", self.total, ["running"])
        try:
            while self.queue or self.running:
                self._start_runs()
                self._collect_finished()
                self.signals.check()
                time.sleep(POLL_SECONDS)
        except RunInterrupted as interrupt:
            self.progress.note(f"{interrupt}: waiting for {len(self.running)} runs to save")
            raise
        finally:
            self._terminate()
        return self.failures

    def _start_runs(self) -> None:
        while self.queue and len(self.running) < self.jobs:
            run = self.queue.popleft()
            try:
                process = run.start(self.threads)
            except ValueError as error:
                self._report_failure(run, str(error))
            else:
                self.running.append((run, process))
                self._show_progress()

    def _collect_finished(self) -> None:
        for run, process in list(self.running):
            if process.poll() is None:
                continue
            self.running.remove((run, process))
            if process.returncode:
                self._report_failure(run, _failure_reason(process.returncode, run.log))
            else:
                self.progress.note(_outcome(run))
            self._show_progress()

    def _report_failure(self, run: PlannedRun, reason: str) -> None:
        self.failures[run.name] = reason
        self.progress.note(f"{run.name} failed: {reason}")

    def _show_progress(self) -> None:
        names = ", ".join(run.name for run, _ in self.running)
        finished = self.total - len(self.queue) - len(self.running)
        self.progress.update(finished, running=names)

    def _terminate(self) -> None:
        """Let the runs save and leave.

        Sends SIGTERM. SIGINT may be ignored if a shell started this process with &.
        """
        for _, process in self.running:
            process.terminate()
        for _, process in self.running:
            process.wait()


def _outcome(run: PlannedRun) -> str:
    result = measure(read_run(run.folder, run.arm.name, run.seed))
    return (
        f"{run.name}: {result.seconds:.0f} s, pass@1 {result.start:.3f} -> {result.peak:.3f} "
        f"(step {result.peak_step}) -> {result.end:.3f}"
    )


def _failure_reason(returncode: int, log: Path) -> str:
    """Why a process failed: the signal that ended it, or the last line of its log.

    A run that could save exits with 128 + signal.
    """
    if returncode < 0 or returncode > 128:
        number = -returncode if returncode < 0 else returncode - 128
        return f"stopped by {signal.Signals(number).name}"
    lines = log.read_text(errors="replace").split("\n")
    texts = [line.strip() for line in lines if line.strip()]
    return texts[-1] if texts else f"exit code {returncode}"


def _differences(folder: Path, expected: Config) -> str:
    """The fields in which the folder's run has another configuration. run_dir does not count."""
    try:
        config = override(load_config(folder), {"run_dir": expected.run_dir})
    except ValueError as error:  # fields of another version
        return str(error)
    values = _flat_fields(config)
    return ", ".join(
        f"{name} is {values[name]!r}, not {value!r}"
        for name, value in _flat_fields(expected).items()
        if values[name] != value
    )


def _flat_fields(config: Config) -> dict[str, Any]:
    """The configuration with dotted names: {"train.lr": 1e-4}. Tables such as task.params stay."""
    flat = {}
    for name, value in to_dict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{field}": setting for field, setting in value.items()}
        else:
            flat[name] = value
    return flat
