"""A run's folder: configuration, lock, metrics, checkpoints, evaluations, summary and report."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from srt_fast.config import Config, from_dict, to_dict
from srt_fast.files import write_atomically
from srt_fast.rewards.audit import Audit, sentence
from srt_fast.run.checkpoint import CheckpointError, list_checkpoints, save_checkpoint
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
)
"""What a resumed run may set anew; anything else would make it another run."""


class RunFolder:
    """Everything of a run that is not learning. A context manager: holds the folder's lock and the signal handlers.

    `seconds` and `evaluations` survive a resume. Raises ValueError for a folder that already holds a run (when not
    resuming), that another process uses, or whose configuration a resume would change.
    """

    def __init__(self, config: Config, *, resume: str | Path | None, quiet: bool):
        self.config, self._resuming = config, resume is not None
        self.folder = Path(resume or config.run_dir or _default_folder(config))
        if resume is not None:
            _check_same(load_config(self.folder), config)
        elif _holds_a_run(self.folder):
            raise ValueError(
                f"run_dir: {self.folder} already holds a run; continue it with --resume {self.folder}, "
                "or name another folder"
            )
        self.progress, self.signals = RunProgress(quiet=quiet), InterruptHandler()
        self.audit = Audit(
            self.folder / "audit.jsonl", config.reward.audit_groups, config.train.seed
        )
        self.evaluations: dict[str, dict] = {}
        self._before = 0.0

    def __enter__(self) -> RunFolder:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._started = time.perf_counter()
        with contextlib.ExitStack() as opened:  # closes what is open should a later line fail
            try:
                opened.enter_context(FileLock(self.folder / ".lock", timeout=0))
            except Timeout:
                raise ValueError(
                    f"run_dir: another process is using {self.folder}; "
                    "wait for it or name another folder"
                ) from None
            saved = self.last_checkpoint()
            resume_step = (
                (int(saved.name.removeprefix("step-")) if saved else -1) if self._resuming else None
            )
            self.metrics = MetricsWriter(self.folder, self.config.log, resume_step)
            opened.callback(self.metrics.close)
            self.audit.open(resume_step)
            opened.callback(self.audit.close)
            write_atomically(
                self.folder / "config.json", json.dumps(to_dict(self.config), indent=2) + "\n"
            )
            opened.enter_context(self.signals)
            opened.enter_context(self.progress)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._opened.__exit__(*exception)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run so far, earlier sessions included."""
        return self._before + time.perf_counter() - self._started

    def last_checkpoint(self) -> Path | None:
        """The checkpoint to resume from; None for a new run or where none was written."""
        checkpoints = list_checkpoints(self.folder / "checkpoints") if self._resuming else []
        return checkpoints[-1] if checkpoints else None

    def save(self, step: int, write: Callable[[Path], None], *, needed: bool, again: bool) -> bool:
        """Write a checkpoint; `again`: replace the one of this step. Where that fails (a full disk) and it is not `needed`,
        log an event and go on. Whether it is there."""
        try:
            save_checkpoint(
                self.folder / "checkpoints",
                step,
                write,
                self.config.checkpoint.keep,
                self.folder / "model",
                again=again,
            )
        except CheckpointError as error:
            if needed:
                raise
            self.event(step, "checkpoint_failed", str(error))
            return False
        return True

    def event(self, step: int, name: str, message: str, **values) -> None:
        """A logged, shown event: something was skipped, dropped or failed."""
        self.metrics.log(step, {"event": name, "message": message, **values}, kind="event")
        self.progress.note(f"step {step}: {message}")

    def where_saved(self) -> str:
        """A sentence for a person whose run has stopped."""
        checkpoints = list_checkpoints(self.folder / "checkpoints")
        if not checkpoints:
            return f"No checkpoint was written yet; srt-fast train --resume {self.folder} starts it again."
        return f"Saved at {checkpoints[-1]}; continue with: srt-fast train --resume {self.folder}"

    def finish(self, step: int) -> dict:
        """Write summary.json and the report; return the summary."""
        self.audit.close()
        if audited := self.audit.totals():
            self.event(
                step,
                "audit",
                sentence(audited),
                **{f"audit/{name}": value for name, value in audited.items()},
            )
        start, end = self.evaluations["start"], self.evaluations["end"]
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

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "evaluations": self.evaluations}

    def load_state_dict(self, state: dict) -> None:
        self._before, self.evaluations = state["seconds"], state["evaluations"]
        self._started = time.perf_counter()


def load_config(folder: str | Path) -> Config:
    """The configuration that a run folder was made with. ValueError where there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"expected a run folder with config.json, got {str(folder)!r} without one")
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got: {error}") from None
    if isinstance(values, dict) and isinstance(values.get("sampling"), dict):
        values["sampling"].setdefault("engine", "hf")  # what there was before the field
        values.setdefault("monitor", {"every": 0})
    return from_dict(values)


def _holds_a_run(folder: Path) -> bool:
    """Whether there is anything to lose: a run that failed before its first row may be started again."""
    metrics = folder / "metrics.jsonl"
    return bool(list_checkpoints(folder / "checkpoints")) or (
        metrics.is_file() and metrics.stat().st_size > 0
    )


def _default_folder(config: Config) -> Path:
    return Path("runs") / f"{config.recipe}-seed{config.train.seed}-{datetime.now():%Y%m%d-%H%M%S}"


def _check_same(old: Config, new: Config) -> None:
    before, after = _flatten(to_dict(old)), _flatten(to_dict(new))
    changed = [
        f"{name} from {before.get(name)!r} to {after.get(name)!r}"
        for name in before | after
        if before.get(name) != after.get(name) and not name.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ValueError(
            f"--resume continues the same run: expected only {', '.join(MAY_CHANGE)} to change, "
            f"got {'; '.join(changed)}"
        )


def _flatten(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {prefix + key: value}
        )
    return flat
