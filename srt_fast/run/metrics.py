"""What a run writes: metrics.jsonl and samples.jsonl always, TensorBoard and a tracker on request.

metrics.jsonl has one JSON object per line:
{"step": 12, "kind": "train", "time": 1731000000.0, "loss": 0.01, ...}. `time` is in seconds since
1970. Rates are fractions, from 0 to 1. Lengths are in tokens, log-probs and entropies in nats.

"train": one row per step.
    The vote (means over prompts or rollouts):
        vote_share            the majority's share of its group
        unanimous             prompts whose rollouts all have one answer
        no_answer             rollouts without an answer
        top_answer_share      largest fraction of the prompts with one and the same majority
        answer_entropy        entropy of the majorities over prompts, divided by its largest value
        pass1                 rollouts that agree with gold
        vote_accuracy         majorities that agree with gold
        label_accuracy        labels that agree with gold
        kept_label_accuracy   the same, of prompts that the reward function keeps
        reward_accuracy       rollouts whose reward is the one that gold would give
        label_j               Youden's J of the labels: agreement of right rollouts less that of
                              wrong ones
    Rewards and completions:
        pseudo_reward         mean reward
        truncated             completions that reached sampling.max_new_tokens
        completion_tokens     mean length of a completion
        sampled_tokens        tokens of all completions of the step, a teacher's too
        repetition            8-token windows that came before in the same completion
        rounds                batches of new prompts in this step (with reward.resample)
        round                 number of the offline round, from 1 (with train.rounds)
        judge_failures        rollouts that the judge could not grade (reward.kind self_judge)
        label_coverage        prompts that have a label (labels from the starting model or a file)
    Later turns of episodes, N from 2 on:
        turnN_asked           conversations
        turnN_too_long        conversations that were longer than a prompt may be, and left out
        turnN_reward          mean reward
        turnN_no_answer, turnN_truncated   as above
        turnN_tokens          mean length of a completion
    The training pass:
        loss, grad_norm       means over the updates; the norm is taken before clipping
        entropy               mean over the trained tokens
        lr                    learning rate
        updates               optimizer updates
        tokens_saved          tokens of rollouts without a gradient, which the pass leaves out
        tokens_shared         tokens of prompts that the pass computes once, not once a completion
        kl                    mean KL to the starting model (with train.reward_kl_coef)
        pairs                 preference pairs (with train.objective dpo or scpo)
        pair_margin           mean of beta d, what the pairs gained over the reference
        pair_accuracy         pairs whose margin is above 0
        supervised, supervised_loss   completions of a supervised step, and its loss (nats a token)
    The sampler's log-probs compared with the trainer's, differences in nats:
        check_mismatch_max, check_mismatch_mean   largest and mean of the check after each sync
        train_mismatch_max    largest over the trained tokens (not with sft, dpo and scpo)
        correction            mean sampler correction (with a correction in the objective)
        correction_clipped    tokens whose correction is over its cap
    Time, in seconds:
        seconds               the whole step
        seconds_sample        sampling, a teacher's too
        seconds_reward        vote and reward
        seconds_score         passes without gradient: old and reference log-probs, statistics of
                              tokens, verdicts
        seconds_train         the training pass
        seconds_sync          weights to the sampler, the check, and the wait for rollouts that were
                              sampled meanwhile
        tokens_per_second     completion tokens of the step divided by its seconds
    Distance to the limit (with log.mfu; srt_fast/utilization/flops.py has the formulas):
        sample_flops, score_flops, train_flops   model FLOPs, of all ranks
        sample_mfu, score_mfu, train_mfu   FLOPs a second of that part, divided by the measured rate
        sample_limit_seconds  prefill at the measured rate, and decoding at that rate or at the
                              measured bandwidth, whichever takes longer
        limit_share           the limits of the three parts divided by the step's seconds
"eval": one row per evaluation.
    The names that evaluation.scores.summarize returns, with turns those of summarize_revisions and
    summarize_verdicts and maj_verdict, truncated, completion_tokens, and
    prompts_too_long if there are any.
"monitor": one row each time the collapse probe is measured.
    probe_score               the probe's score
    probe_agreeing_1, probe_samples_1   agreeing samples and samples of the first half
    probe_agreeing_2, probe_samples_2   and of the second
    probe_reference           the score that the alarm compares with
    probe_kl                  KL from the starting model to the policy, nats a token
    probe_dissent             clear votes of the starting model that the policy now mostly leaves
    best_step                 the step with the best score so far
"event": what else happened.
    "event" (a short name such as "step_skipped"), "message", and figures of the event.
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
RESERVED_NAMES = ("step", "kind", "time")
"""Names that every row has, so that no metric may have them."""


class NoMetrics:
    """The metrics of a rank that writes none: rank 0 does."""

    def log(
        self, step: int, values: Mapping[str, float | int | str | None], kind: str = "train"
    ) -> None:
        """See MetricsWriter.log."""

    def log_samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """See MetricsWriter.log_samples."""


class MetricsWriter:
    """Appends a run's metrics and samples.

    A row is in the file when the call returns, so kill -9 loses none.

    resume_step: the step of the checkpoint that the run continues from (-1 keeps no row), or None
    for a new run. A resume drops the rows of later steps, because those steps are run again.
    """

    def __init__(self, run_dir: str | Path, log: LogConfig, resume_step: int | None) -> None:
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics = open_rows(run_dir / "metrics.jsonl", resume_step)
        self._samples = open_rows(run_dir / "samples.jsonl", resume_step)
        self._board = _open_tensorboard(run_dir, resume_step) if log.tensorboard else None
        self._tracker = _open_tracker(run_dir, log, resume_step) if log.tracker != "none" else None

    def log(
        self, step: int, values: Mapping[str, float | int | str | None], kind: str = "train"
    ) -> None:
        """Append one row.

        NaN and infinity become null. TensorBoard and the tracker get the finite numbers.
        Raises ValueError for an unknown kind and for reserved names.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        reserved = [name for name in RESERVED_NAMES if name in values]
        if reserved:
            raise ValueError(
                f"values: expected names other than {', '.join(RESERVED_NAMES)}, "
                f"got {', '.join(reserved)}"
            )
        row = {name: _finite(value) for name, value in values.items()}
        now = round(time.time(), 3)
        append_rows(self._metrics, [{"step": step, "kind": kind, "time": now, **row}])
        numbers = {
            f"{kind}/{name}": value for name, value in row.items() if isinstance(value, int | float)
        }
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        if self._tracker and numbers:
            self._tracker.log(numbers, step=step)

    def log_samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append sample completions.

        A row has prompt, completion, answer, majority (whether the answer is the majority's) and
        correct (None without gold). Of an episode also turns: question, completion and reward of
        each later turn.
        """
        finite_rows = [
            {"step": step} | {name: _finite(value) for name, value in row.items()} for row in rows
        ]
        append_rows(self._samples, finite_rows)

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


def _open_tensorboard(run_dir: Path, resume_step: int | None) -> Any:
    module = _import("torch.utils.tensorboard", "tensorboard", "log.tensorboard")
    # TensorBoard hides what a killed run wrote at this step and later.
    purge_step = None if resume_step is None else resume_step + 1
    return module.SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)


def _open_tracker(run_dir: Path, log: LogConfig, resume_step: int | None) -> Any:
    """Start a tracker's run, or continue it.

    wandb finds a run by its id, which a project may use only once. trackio finds it by its name.
    """
    tracker = _import(log.tracker, log.tracker, "log.tracker")
    settings = {
        "project": log.project,
        "name": run_dir.resolve().name,
        "resume": "never" if resume_step is None else "allow",
    }
    if log.tracker == "wandb":
        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12])
        settings |= {"id": id_file.read_text().strip(), "dir": str(run_dir)}
    tracker.init(**settings)
    return tracker


def _import(module: str, package: str, field: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{field}: expected the package {package!r}, which is not installed "
            f"(pip install {package})"
        ) from error
