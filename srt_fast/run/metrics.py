"""What a run writes down: metrics.jsonl and samples.jsonl always, TensorBoard and a tracker on request.

One JSON object per line: {"step": 12, "kind": "train", "time": 1731000000.0, "loss": 0.01, ...}. Kinds:
"train"  one row per step: loss, entropy, grad_norm, lr, pseudo_reward, vote_share, label_accuracy, pass1, unanimous,
         no_answer, cut, completion_tokens, top_answer_share, tokens_saved, tokens_per_second. Rates (pass1, cut, ...)
         are fractions. A step's time: seconds_sample, seconds_reward (the vote), seconds_train, seconds_sync (weights to
         the sampler, the check, and the wait for rollouts sampled meanwhile) and seconds, the whole step.
         Differences of the sampler's and the trainer's log-probs, in nats: check_mismatch_max and check_mismatch_mean (largest and mean
         in the check after each sync), train_mismatch_max (largest over the trained tokens). With a sampler correction:
         correction (mean) and correction_clipped (share of tokens whose correction is over its cap).
"eval"   one row per evaluation: scores.summarize's names and completion_tokens.
"monitor" the monitor's held-out prompts: held_out (their score), kl_start (nats a token from the starting model), best_step.
"event"  what else happened: "event" (a short name such as "skipped_step") and "message".
"""

from __future__ import annotations

import importlib
import math
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from srt_fast.config import LogConfig
from srt_fast.files import append_rows, open_rows

KINDS = ("train", "eval", "monitor", "event")
_OWN = ("step", "kind", "time")


class MetricsWriter:
    """Appends a run's metrics and samples. A row is in the file (flushed) when the call returns, so kill -9 loses none.

    `resume_step` is the last step of the checkpoint that the run continues from (-1 keeps nothing), or None for a new
    run. On resume the rows of later steps are dropped, because those steps are run again and would be there twice.
    """

    def __init__(self, run_dir: str | Path, log: LogConfig, resume_step: int | None):
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics = open_rows(run_dir / "metrics.jsonl", resume_step)
        self._samples = open_rows(run_dir / "samples.jsonl", resume_step)
        self._board = _open_tensorboard(run_dir, resume_step) if log.tensorboard else None
        self._tracker = _open_tracker(run_dir, log, resume_step) if log.tracker != "none" else None

    def log(
        self, step: int, values: Mapping[str, float | int | str | None], kind: str = "train"
    ) -> None:
        """Append one row. NaN and infinity become null; TensorBoard and the tracker get the finite numbers."""
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        if taken := [name for name in _OWN if name in values]:
            raise ValueError(
                f"values: expected names other than {', '.join(_OWN)}, got {', '.join(taken)}"
            )
        values = {name: _finite(value) for name, value in values.items()}
        append_rows(
            self._metrics, [{"step": step, "kind": kind, "time": round(time.time(), 3), **values}]
        )
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        if self._tracker and numbers:
            self._tracker.log(numbers, step=step)

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append sample completions: prompt, completion, answer, majority (in it?), correct (None: no gold)."""
        append_rows(
            self._samples,
            ({"step": step} | {name: _finite(v) for name, v in row.items()} for row in rows),
        )

    def close(self) -> None:
        """Close the files and end the tracker's run."""
        self._metrics.close()
        self._samples.close()
        if self._board:
            self._board.close()
        if self._tracker:
            self._tracker.finish()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_tensorboard(run_dir: Path, resume_step: int | None):
    module = _import("torch.utils.tensorboard", "tensorboard", "log.tensorboard")
    purge_step = (
        None if resume_step is None else resume_step + 1
    )  # TensorBoard hides what the killed run wrote after
    return module.SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)


def _open_tracker(run_dir: Path, log: LogConfig, resume_step: int | None):
    """wandb finds a run to continue by its id, which must never be used twice in a project; trackio by its name."""
    tracker = _import(log.tracker, log.tracker, "log.tracker")
    settings = {"project": log.project, "name": run_dir.resolve().name}
    settings["resume"] = "never" if resume_step is None else "allow"
    if log.tracker == "wandb":
        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12])
        settings |= {"id": id_file.read_text().strip(), "dir": str(run_dir)}
    tracker.init(**settings)
    return tracker


def _import(module: str, package: str, field: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        wanted = f"expected the package {package!r}, which is not installed (pip install {package})"
        raise ValueError(f"{field}: {wanted}") from error
