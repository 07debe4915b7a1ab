"""Runs a grid of arms and seeds, a few at a time, each as `srt-fast train` in its own process.

Started again, it continues: a finished run (with summary.json) is left alone. Any other run
continues from its last checkpoint, or from its beginning if there is none. A run that another
process works on, such as one that outlived a killed experiment, is waited for.

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

import yaml
from filelock import FileLock, Timeout

from srt_fast.config import Config, override, to_dict
from srt_fast.config.overrides import flatten
from srt_fast.experiment.grid import Arm
from srt_fast.experiment.measure import measure, read_run
from srt_fast.rewards import make_reward_function
from srt_fast.run.folder import LOCK, load_config
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
        return f"{self.arm.label}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def log(self) -> Path:
        return self.root / f"{self.name}.log"

    def has_begun(self) -> bool:
        return (self.folder / "config.json").is_file()

    def is_running(self) -> bool:
        """Whether a process holds the folder's lock."""
        if not self.folder.is_dir():
            return False
        try:
            with FileLock(self.folder / LOCK, timeout=0):
                return False
        except Timeout:
            return True

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
        """Start or resume the run."""
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


def run_grid(
    arms: Sequence[Arm], seeds: Sequence[int], root: Path, jobs: int, threads: int | None = None
) -> dict[str, str]:
    """Run what is not finished: all arms of a seed before the next seed.

    jobs: runs at the same time. threads: of each run. None: the cores divided by jobs. Returns the
    reason of each run that failed, by the run's name. Raises ValueError, before anything starts,
    for bad settings of an arm and for a folder with another configuration. Raises RunInterrupted
    for SIGINT or SIGTERM, after the runs have saved.
    """
    for arm in arms:
        _check_reward(arm)
    runs = [PlannedRun(arm, seed, root) for seed in seeds for arm in arms]
    unfinished = [run for run in runs if not run.has_finished()]
    root.mkdir(parents=True, exist_ok=True)
    with InterruptHandler() as signals, RunProgress() as progress:
        if len(unfinished) < len(runs):
            finished = len(runs) - len(unfinished)
            progress.note(f"{finished} of {len(runs)} runs have finished already")
        if not unfinished:
            return {}
        threads = threads or max(1, (os.cpu_count() or 1) // jobs)
        return _Workers(unfinished, jobs, threads, progress, signals).run_all()


def _check_reward(arm: Arm) -> None:
    """Raise ValueError for settings that the arm's reward function does not take."""
    reward = arm.config(0, Path("run")).reward
    try:
        make_reward_function(reward.kind, reward.params)
    except ValueError as error:
        raise ValueError(f"arm {arm.label}: {error}") from None


class _Workers:
    """The processes that run, and the queue of runs for them."""

    def __init__(
        self,
        runs: list[PlannedRun],
        jobs: int,
        threads: int,
        progress: RunProgress,
        signals: InterruptHandler,
    ) -> None:
        self.queue = deque(runs)
        self.total = len(runs)
        self.jobs = jobs
        self.threads = threads
        self.running: list[tuple[PlannedRun, subprocess.Popen]] = []
        self.failures: dict[str, str] = {}
        self.waited_for: set[str] = set()
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
        for _ in range(len(self.queue)):
            if len(self.running) == self.jobs:
                return
            run = self.queue.popleft()
            if run.is_running():
                self._wait_for(run)
            elif run.has_finished():  # meanwhile, in another process
                self._show_progress()
            else:
                self.running.append((run, run.start(self.threads)))
                self._show_progress()

    def _wait_for(self, run: PlannedRun) -> None:
        """Come back to a run of another process after the others."""
        self.queue.append(run)
        if run.name not in self.waited_for:
            self.waited_for.add(run.name)
            self.progress.note(f"{run.name} is running in another process; waiting for it")

    def _collect_finished(self) -> None:
        for run, process in list(self.running):
            if process.poll() is None:
                continue
            self.running.remove((run, process))
            if process.returncode:
                self._report_failure(run, _failure_reason(process.returncode, run.log))
            else:
                self._report_outcome(run)
            self._show_progress()

    def _report_outcome(self, run: PlannedRun) -> None:
        try:
            self.progress.note(_outcome(run))
        except ValueError as error:  # nothing to measure
            self._report_failure(run, str(error))

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
    result = measure(read_run(run.folder, run.arm, run.seed))
    return (
        f"{run.name}: {result.seconds:.0f} s, pass@1 {result.start:.3f} -> {result.peak:.3f} "
        f"(step {result.peak_step}) -> {result.end:.3f}"
    )


def _failure_reason(returncode: int, log: Path) -> str:
    """Why a process failed: the signal that ended it, or the last line of its log.

    A run that could save exits with 128 + signal.
    """
    number = -returncode if returncode < 0 else returncode - 128
    if number in set(signal.Signals):
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
    values = flatten(to_dict(config))
    return ", ".join(
        f"{name} is {values[name]!r}, not {value!r}"
        for name, value in flatten(to_dict(expected)).items()
        if values[name] != value
    )
