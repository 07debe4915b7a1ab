"""A run's folder: configuration, lock, metrics, checkpoints, evaluations, summary and report."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from srt_fast.config import Config, from_dict, to_dict
from srt_fast.config.resume import check_resume
from srt_fast.distributed.world import ONE_PROCESS, World
from srt_fast.errors import CheckpointError
from srt_fast.files import parse_json, write_atomically
from srt_fast.rewards.audit import Audit, describe_totals
from srt_fast.run.checkpoint import CheckpointStore
from srt_fast.run.checkpoint_writer import Contents, checkpoint_step, list_checkpoints
from srt_fast.run.interrupts import InterruptHandler
from srt_fast.run.metrics import MetricsWriter, NoMetrics
from srt_fast.run.progress import RunProgress
from srt_fast.run.report import write_report

LOCK = ".lock"
"""The file that a run locks."""


class RunFolder:
    """A run's folder, and the parts of a run that do not learn.

    A context manager. Inside it, the run holds the folder's lock and the signal handlers, and
    `metrics` is open. `seconds` and `evaluations` survive a resume.

    resume: the folder of a run to continue. Raises ValueError for a folder that already holds a run
    (without resume), that another process uses, whose configuration a resume would change, or whose
    checkpoints are all damaged.
    """

    metrics: MetricsWriter | NoMetrics

    def __init__(
        self,
        config: Config,
        *,
        resume: str | Path | None,
        quiet: bool,
        world: World = ONE_PROCESS,
    ) -> None:
        self.config = config
        self.world = world
        folder = resume or config.run_dir or world.broadcast(_default_folder(config))
        self.folder = Path(folder)
        self._is_resumed = resume is not None
        with world.agreement():
            self._check_folder()
        self.progress = RunProgress(quiet=quiet)
        self.interrupts = InterruptHandler(repeat_seconds=1.0 if world.is_distributed else 0.0)
        self.audit = Audit(
            self.folder / "audit.jsonl", config.reward.audit_groups, config.train.seed
        )
        self.checkpoints = CheckpointStore(
            self.folder / "checkpoints",
            keep=config.checkpoint.keep,
            link=self.folder / "model",
            world=world,
        )
        self._last_checkpoint: Path | None = None
        self.evaluations: dict[str, dict[str, Any]] = {}
        self._earlier_seconds = 0.0
        self._start_time = 0.0
        self._resources = contextlib.ExitStack()

    def _check_folder(self) -> None:
        if self._is_resumed:
            check_resume(load_config(self.folder), self.config)
        elif _holds_a_run(self.folder):
            raise ValueError(
                f"run_dir: expected a new folder, got {self.folder}, which already holds a run; "
                f"continue it with --resume {self.folder}, or name another folder"
            )

    def __enter__(self) -> RunFolder:
        self._start_time = time.perf_counter()
        with contextlib.ExitStack() as resources:  # closes the open ones if a later one fails
            with self.world.agreement():
                if self.world.is_main:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    self._lock(resources)
            resume_step = self._resume_step()
            with self.world.agreement():
                if self.world.is_main:
                    self._open(resources, resume_step)
            if not self.world.is_main:
                self.metrics = NoMetrics()
                rank_log = open(self.folder / f"rank-{self.world.rank}.log", "a", encoding="utf-8")
                self.progress = RunProgress(Console(file=resources.enter_context(rank_log)))
            self.world.remember("run_dir", str(self.folder))
            resources.enter_context(self.interrupts)
            resources.enter_context(self.progress)
            for message in self.checkpoints.refused.values():
                self.event(resume_step or 0, "checkpoint_refused", message)
            self._resources = resources.pop_all()
        return self

    def _open(self, resources: contextlib.ExitStack, resume_step: int | None) -> None:
        """Open what rank 0 writes."""
        metrics = MetricsWriter(self.folder, self.config.log, resume_step)
        resources.callback(metrics.close)
        self.metrics = metrics
        self.audit.open(resume_step)
        resources.callback(self.audit.close)
        config_text = json.dumps(to_dict(self.config), indent=2) + "\n"
        write_atomically(self.folder / "config.json", config_text)

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.world.is_distributed:  # ranks that end with errors do not wait for others
            with contextlib.suppress(CheckpointError):
                self.checkpoints.finish(wait=True)
        self._resources.__exit__(exception_type, exception, traceback)

    def check(self) -> None:
        """Raise RunInterrupted on all ranks if a signal has arrived on one. Collective."""
        with self.world.agreement():
            self.interrupts.check()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run so far, earlier sessions included."""
        return self._earlier_seconds + time.perf_counter() - self._start_time

    def last_checkpoint(self) -> Path | None:
        """The checkpoint to resume from. None for a new run, and if none was written."""
        return self._last_checkpoint

    def save(
        self,
        step: int,
        contents: Contents,
        *,
        is_required: bool,
        overwrite: bool,
        when_saved: Callable[[], None],
    ) -> None:
        """Write a checkpoint, and call when_saved.

        overwrite: replace an earlier checkpoint of this step. If writing fails (a full disk):
        raises CheckpointError with `is_required`, else logs an event. With checkpoint.asynchronous
        a checkpoint that is not required is written while the next steps run.
        """
        self.finish_saving(step, wait=True)
        try:
            self.checkpoints.save(
                step,
                contents,
                overwrite=overwrite,
                in_background=self.config.checkpoint.asynchronous and not is_required,
                when_saved=when_saved,
            )
        except CheckpointError as error:
            if is_required:
                raise
            self.event(step, "checkpoint_failed", str(error))

    def finish_saving(self, step: int, *, wait: bool = False) -> None:
        """After a step: end the saving in the background if it is done. Logs a failure.

        wait: until it is done.
        """
        try:
            self.checkpoints.finish(wait=wait)
        except CheckpointError as error:
            self.event(step, "checkpoint_failed", str(error))

    def event(self, step: int, name: str, message: str, **values: float | int | str | None) -> None:
        """Log an event, and show its message: something was skipped, dropped or failed."""
        self.metrics.log(step, {"event": name, "message": message, **values}, kind="event")
        self.progress.note(f"step {step}: {message}")

    def where_saved(self) -> str:
        """One sentence for the user of a run that has stopped: how to continue it."""
        command = f"srt-fast train --resume {self.folder}"
        checkpoints = [
            checkpoint
            for checkpoint in list_checkpoints(self.folder / "checkpoints")
            if checkpoint not in self.checkpoints.refused
        ]
        if not checkpoints:
            return f"No checkpoint was written yet; {command} starts it again."
        return f"Saved at {checkpoints[-1]}; continue with: {command}"

    def finish(self, step: int) -> dict[str, Any]:
        """Write summary.json and the report on rank 0. Returns the summary on all ranks."""
        return self.world.on_main(lambda: self._finish(step))

    def _finish(self, step: int) -> dict[str, Any]:
        self.audit.close()
        audit_totals = self.audit.totals()
        if audit_totals:
            values = {f"audit/{name}": value for name, value in audit_totals.items()}
            self.event(step, "audit", describe_totals(audit_totals), **values)
        start = self.evaluations["start"]
        end = self.evaluations["end"]
        summary = {
            "recipe": self.config.recipe,
            "seed": self.config.train.seed,
            "steps": step,
            "pass1_start": start.get("pass1"),
            "pass1_end": end.get("pass1"),
            "maj_start": start.get("maj"),
            "maj_end": end.get("maj"),
            "seconds": round(self.seconds, 1),
            "run_dir": str(self.folder),
        }
        write_atomically(self.folder / "summary.json", json.dumps(summary) + "\n")
        write_report(self.folder)
        return summary

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "evaluations": self.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._earlier_seconds = state["seconds"]
        self.evaluations = state["evaluations"]
        self._start_time = time.perf_counter()

    def _lock(self, resources: contextlib.ExitStack) -> None:
        try:
            resources.enter_context(FileLock(self.folder / LOCK, timeout=0))
        except Timeout:
            raise ValueError(
                f"run_dir: another process is using {self.folder}; "
                "wait for it or name another folder"
            ) from None

    def _resume_step(self) -> int | None:
        """The last step whose rows stay. -1 if a resumed run begins anew, None for a new run."""
        if not self._is_resumed:
            return None
        self._last_checkpoint = self.checkpoints.newest_intact()
        if self._last_checkpoint:
            return checkpoint_step(self._last_checkpoint)
        if refused := self.checkpoints.refused:
            raise ValueError(
                f"--resume {self.folder}: expected one intact checkpoint, got "
                f"{len(refused)}, none of them intact: {'; '.join(refused.values())}"
            )
        return -1


def load_config(folder: str | Path) -> Config:
    """The configuration of a run folder. Raises ValueError if there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"expected a run folder with config.json, got {str(folder)!r} without one")
    try:
        values = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a table of fields, got {type(values).__name__}")
    try:
        return from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _holds_a_run(folder: Path) -> bool:
    """Whether a new run would destroy anything. A run without rows may be started again."""
    metrics = folder / "metrics.jsonl"
    has_rows = metrics.is_file() and metrics.stat().st_size > 0
    return has_rows or bool(list_checkpoints(folder / "checkpoints"))


def _default_folder(config: Config) -> str:
    return f"runs/{config.recipe}-seed{config.train.seed}-{datetime.now():%Y%m%d-%H%M%S}"
