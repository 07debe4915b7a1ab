"""Runs a grid of arms and seeds, a few at a time, each as `srt-fast train` in a process of its own.

Started again it goes on: a finished run (summary.json is there) is left alone, any other continues from its last checkpoint,
or from its beginning where there is none. The processes are in sessions of their own, so that a terminal's Ctrl-C reaches
only this one, which passes it on once: a run that gets a second signal would leave without saving.
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
from srt_fast.experiment.analysis import measure, read_run
from srt_fast.experiment.grid import Arm
from srt_fast.run.folder import load_config
from srt_fast.run.interrupts import InterruptHandler, RunInterrupted
from srt_fast.run.progress import RunProgress

POLL = 0.2  # seconds between two looks at the processes


@dataclass(frozen=True)
class PlannedRun:
    """An arm with a seed: its folder ROOT/NAME, its configuration ROOT/NAME.yaml and its standard error ROOT/NAME.log."""

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

    def begun(self) -> bool:
        return (self.folder / "config.json").is_file()

    def finished(self) -> bool:
        """Whether there is nothing left to do. ValueError for a folder whose run has another configuration."""
        if not self.begun():
            return False
        if differs := _differences(self.folder, self.arm.config(self.seed, self.folder)):
            raise ValueError(
                f"{self.folder} holds a run of another configuration ({differs}); delete it or take another --runs"
            )
        return (self.folder / "summary.json").is_file()

    def start(self, threads: int) -> subprocess.Popen:
        """Its process. ValueError where the arm's configuration is none."""
        if self.begun():
            arguments = ["--resume", str(self.folder)]
        else:
            file = self.root / f"{self.name}.yaml"
            file.write_text(
                yaml.safe_dump(to_dict(self.arm.config(self.seed, self.folder)), sort_keys=False)
            )
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
    """Run what is not finished, all arms of a seed before the next seed. Returns the reason of each run that failed.

    Raises ValueError, before anything starts, for a folder with another configuration, and RunInterrupted when SIGINT or
    SIGTERM arrived: the runs have saved by then.
    """
    runs = [PlannedRun(arm, seed, root) for seed in seeds for arm in arms]
    waiting = [run for run in runs if not run.finished()]
    root.mkdir(parents=True, exist_ok=True)
    with InterruptHandler() as signals, RunProgress() as progress:
        if len(waiting) < len(runs):
            progress.note(f"{len(runs) - len(waiting)} of {len(runs)} runs were finished before")
        return _Workers(waiting, jobs, progress, signals).work() if waiting else {}


class _Workers:
    """The processes that are under way, and what is left for them."""

    def __init__(
        self, runs: list[PlannedRun], jobs: int, progress: RunProgress, signals: InterruptHandler
    ):
        self.waiting, self.total, self.jobs = deque(runs), len(runs), jobs
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.running: list[tuple[PlannedRun, subprocess.Popen]] = []
        self.failures: dict[str, str] = {}
        self.progress, self.signals = progress, signals

    def work(self) -> dict[str, str]:
        self.progress.phase("runs", self.total, ["running"])
        try:
            while self.waiting or self.running:
                self._fill()
                self._reap()
                self.signals.check()
                time.sleep(POLL)
        except RunInterrupted as stop:
            self.progress.note(f"{stop}: waiting for {len(self.running)} runs to save")
            raise
        finally:
            self._stop()
        return self.failures

    def _fill(self) -> None:
        before = len(self.running)
        while self.waiting and len(self.running) < self.jobs:
            run = self.waiting.popleft()
            try:
                self.running.append((run, run.start(self.threads)))
            except ValueError as error:
                self._failed(run, str(error))
        if len(self.running) > before:
            self._show()

    def _reap(self) -> None:
        for run, process in [pair for pair in self.running if pair[1].poll() is not None]:
            self.running.remove((run, process))
            if process.returncode:
                self._failed(run, _reason(process.returncode, run.log))
            else:
                self.progress.note(_outcome(run))
            self._show()

    def _failed(self, run: PlannedRun, reason: str) -> None:
        self.failures[run.name] = reason
        self.progress.note(f"{run.name} failed: {reason}")

    def _show(self) -> None:
        names = ", ".join(run.name for run, _ in self.running)
        self.progress.update(self.total - len(self.waiting) - len(self.running), running=names)

    def _stop(self) -> None:
        """Have what still runs save and leave: SIGTERM, because SIGINT may be ignored where a shell started us with &."""
        for _, process in self.running:
            process.terminate()
        for _, process in self.running:
            process.wait()


def _outcome(run: PlannedRun) -> str:
    result = measure(read_run(run.folder, run.arm.name, run.seed))
    return (
        f"{run.name}: {result.seconds:.0f} s, pass@1 {result.start:.3f} -> {result.peak:.3f} (step {result.peak_step}) "
        f"-> {result.end:.3f}"
    )


def _reason(returncode: int, log: Path) -> str:
    """Why a process failed: the signal that ended it (a run that could save leaves with 128 + signal), or its last line."""
    if returncode < 0 or returncode > 128:
        number = -returncode if returncode < 0 else returncode - 128
        return f"stopped by {signal.Signals(number).name}"
    lines = log.read_text(errors="replace").split("\n")
    return next(
        (line.strip() for line in reversed(lines) if line.strip()), f"exit code {returncode}"
    )


def _differences(folder: Path, wanted: Config) -> str:
    """The fields in which a folder's run has another configuration, wherever that folder was when it ran."""
    try:
        found, expected = (
            _fields(override(load_config(folder), {"run_dir": wanted.run_dir})),
            _fields(wanted),
        )
    except ValueError as error:  # fields of another version
        return str(error)
    return ", ".join(
        f"{name} is {found[name]!r}, not {value!r}"
        for name, value in expected.items()
        if found[name] != value
    )


def _fields(config: Config) -> dict[str, Any]:
    flat = {}
    for name, value in to_dict(config).items():
        flat |= (
            {f"{name}.{field}": each for field, each in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat
