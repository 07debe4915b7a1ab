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

from srt_fast.config import Config, from_dict, to_dict
from srt_fast.files import parse_json, write_atomically
from srt_fast.rewards.audit import Audit, describe_totals
from srt_fast.run.checkpoint import (
    CheckpointError,
    checkpoint_step,
    list_checkpoints,
    save_checkpoint,
)
from srt_fast.run.interrupts import InterruptHandler
from srt_fast.run.metrics import MetricsWriter
from srt_fast.run.progress import RunProgress
from srt_fast.run.report import write_report

MAY_CHANGE = (
    "run_dir",
    "train.steps",
    "log.",
    "checkpoint.",
    "evaluation.every",
    "reward.audit_groups",
    "vllm.urls",
    "vllm.transfer",
    "vllm.timeout",
    "vllm.start_timeout",
    "vllm.max_logprob_mismatch",
    "vllm.mean_logprob_mismatch",
    "vllm.sleep",
    "vllm.gpu_memory_utilization",
    "vllm.kv_cache_gib",
    "vllm.engine_args",
    "sampling.max_sequences",
    "train.token_budget",
    "dist.",
)
"""Beginnings of the settings that a resumed run may change. Another change makes another run."""


class RunFolder:
    """A run's folder, and the parts of a run that do not learn.

    A context manager. Inside it, the run holds the folder's lock and the signal handlers, and
    `metrics` is open. `seconds` and `evaluations` survive a resume.

    resume: the folder of a run to continue. Raises ValueError for a folder that already holds a run
    (without resume), that another process uses, or whose configuration a resume would change.
    """

    metrics: MetricsWriter

    def __init__(self, config: Config, *, resume: str | Path | None, quiet: bool) -> None:
        self.config = config
        self.folder = Path(resume or config.run_dir or _default_folder(config))
        self._is_resumed = resume is not None
        if self._is_resumed:
            _check_same(load_config(self.folder), config)
        elif _holds_a_run(self.folder):
            raise ValueError(
                f"run_dir: expected a new folder, got {self.folder}, which already holds a run; "
                f"continue it with --resume {self.folder}, or name another folder"
            )
        self.progress = RunProgress(quiet=quiet)
        self.interrupts = InterruptHandler()
        self.audit = Audit(
            self.folder / "audit.jsonl", config.reward.audit_groups, config.train.seed
        )
        self.evaluations: dict[str, dict[str, Any]] = {}
        self._earlier_seconds = 0.0
        self._start_time = 0.0
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._start_time = time.perf_counter()
        with contextlib.ExitStack() as resources:  # closes the open ones if a later one fails
            self._lock(resources)
            resume_step = self._resume_step()
            self.metrics = MetricsWriter(self.folder, self.config.log, resume_step)
            resources.callback(self.metrics.close)
            self.audit.open(resume_step)
            resources.callback(self.audit.close)
            config_text = json.dumps(to_dict(self.config), indent=2) + "\n"
            write_atomically(self.folder / "config.json", config_text)
            resources.enter_context(self.interrupts)
            resources.enter_context(self.progress)
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.__exit__(exception_type, exception, traceback)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run so far, earlier sessions included."""
        return self._earlier_seconds + time.perf_counter() - self._start_time

    def last_checkpoint(self) -> Path | None:
        """The checkpoint to resume from. None for a new run, and if none was written."""
        if not self._is_resumed:
            return None
        checkpoints = list_checkpoints(self.folder / "checkpoints")
        return checkpoints[-1] if checkpoints else None

    def save(
        self, step: int, write: Callable[[Path], None], *, is_required: bool, overwrite: bool
    ) -> bool:
        """Write a checkpoint. Returns whether it is there.

        overwrite: replace an earlier checkpoint of this step. If writing fails (a full disk):
        raises CheckpointError with `is_required`, else logs an event.
        """
        try:
            save_checkpoint(
                self.folder / "checkpoints",
                step,
                write,
                keep=self.config.checkpoint.keep,
                link=self.folder / "model",
                overwrite=overwrite,
            )
        except CheckpointError as error:
            if is_required:
                raise
            self.event(step, "checkpoint_failed", str(error))
            return False
        return True

    def event(self, step: int, name: str, message: str, **values: float | int | str | None) -> None:
        """Log an event, and show its message: something was skipped, dropped or failed."""
        self.metrics.log(step, {"event": name, "message": message, **values}, kind="event")
        self.progress.note(f"step {step}: {message}")

    def where_saved(self) -> str:
        """One sentence for the user of a run that has stopped: how to continue it."""
        command = f"srt-fast train --resume {self.folder}"
        checkpoints = list_checkpoints(self.folder / "checkpoints")
        if not checkpoints:
            return f"No checkpoint was written yet; {command} starts it again."
        return f"Saved at {checkpoints[-1]}; continue with: {command}"

    def finish(self, step: int) -> dict[str, Any]:
        """Write summary.json and the report. Returns the summary."""
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
            resources.enter_context(FileLock(self.folder / ".lock", timeout=0))
        except Timeout:
            raise ValueError(
                f"run_dir: another process is using {self.folder}; "
                "wait for it or name another folder"
            ) from None

    def _resume_step(self) -> int | None:
        """The last step whose rows stay. -1 if a resumed run begins anew, None for a new run."""
        if not self._is_resumed:
            return None
        checkpoint = self.last_checkpoint()
        return checkpoint_step(checkpoint) if checkpoint else -1


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


def _default_folder(config: Config) -> Path:
    return Path("runs") / f"{config.recipe}-seed{config.train.seed}-{datetime.now():%Y%m%d-%H%M%S}"


def _check_same(old_config: Config, new_config: Config) -> None:
    old_fields = _flatten(to_dict(old_config))
    new_fields = _flatten(to_dict(new_config))
    changes = [
        f"{name} from {old_fields.get(name)!r} to {new_fields.get(name)!r}"
        for name in old_fields | new_fields
        if old_fields.get(name) != new_fields.get(name) and not name.startswith(MAY_CHANGE)
    ]
    if changes:
        raise ValueError(
            f"--resume continues the same run: expected only {', '.join(MAY_CHANGE)} to change, "
            f"got {'; '.join(changes)}"
        )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table with dotted names."""
    fields = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            fields |= _flatten(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields
