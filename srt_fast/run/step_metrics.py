"""A step's numbers for the log: time, vote, rewards, training pass, and a few samples to read."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from srt_fast.distributed.world import World
from srt_fast.types import Batch, MicroBatch, Problem, Rollouts
from srt_kernels import Objective, PolicyLoss, Vote
from srt_kernels.core.segments import segment_ids
from srt_kernels.groups.majority_vote import votes_per_key

SAMPLED_PROMPTS = 2
SAMPLED_COMPLETIONS = 3
WINDOW_TOKENS = 8
"""Tokens of the windows that `repetition` compares."""


class StepClock:
    """Seconds of a step, by part: `with clock("sample"): ...`."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    def metrics(self) -> dict[str, float]:
        """seconds_PART of each part, and seconds, the whole step."""
        parts = {f"seconds_{part}": seconds for part, seconds in self._seconds.items()}
        return parts | {"seconds": time.perf_counter() - self._start}


def batch_metrics(batch: Batch, correct: Tensor | None) -> dict[str, float | None]:
    """Figures of a step's rollouts and rewards. correct [R] bool: agreement with gold, if known."""
    rollouts = batch.rollouts
    groups = batch.groups
    values: dict[str, float | None] = {}
    if groups.judge_scores is not None:
        values["judge_failures"] = groups.judge_scores.isnan().float().mean().item()
    if groups.start_labels is not None:
        values["label_coverage"] = (groups.start_labels != 0).float().mean().item()
    values |= vote_metrics(groups.vote, correct, rollouts.cu_groups, batch.reward.rewards)
    return values | {
        "pseudo_reward": batch.reward.rewards.nanmean().item(),
        "truncated": rollouts.truncated.float().mean().item(),
        "completion_tokens": len(rollouts.tokens) / len(rollouts.truncated),
        "repetition": repetition(rollouts),
    }


def vote_metrics(
    vote: Vote, correct: Tensor | None, cu_groups: Tensor, rewards: Tensor
) -> dict[str, float | None]:
    """Figures of P groups' votes.

    top_answer_share: the largest share of prompts that have one and the same majority. It goes to 1
    in a collapse to a constant answer.
    answer_entropy: the entropy of the majorities over prompts, as a fraction of its largest value.
    It is 1 if no two prompts share a majority, 0 if all do.

    With gold: pass1, the accuracy of the samples; reward_accuracy, how often the reward is the one
    that gold would give; label_accuracy, the accuracy of the labels that have reward 1 in a group.
    If the rewards [R] are not 0 and 1, there are no labels: both figures are then of the vote.
    """
    counts = vote.majority[vote.majority != 0].unique(return_counts=True)[1].double()
    values: dict[str, float | None] = {
        "vote_share": vote.share.mean().item(),
        "unanimous": (vote.share == 1).float().mean().item(),
        "no_answer": 1 - vote.valid.float().mean().item(),
        "top_answer_share": (counts.max().item() if len(counts) else 0) / len(vote.majority),
        "answer_entropy": _relative_entropy(counts),
    }
    if correct is None:
        return values
    are_labels = bool(((rewards == 0) | (rewards == 1)).all())
    agrees = rewards.bool() if are_labels else vote.rewards.bool()
    group = segment_ids(cu_groups, len(rewards))
    zeros = torch.zeros(len(vote.majority), device=correct.device)
    has_label = zeros.index_add(0, group, agrees.float()) > 0
    is_right = zeros.index_add(0, group, (agrees & correct).float()) > 0
    return values | {
        "pass1": correct.float().mean().item(),
        "label_accuracy": is_right[has_label].float().mean().item(),
        "reward_accuracy": (agrees == correct).float().mean().item(),
    }


def _relative_entropy(counts: Tensor) -> float | None:
    """Entropy of counts over its largest value, log of their sum. None for fewer than two."""
    total = counts.sum()
    if total <= 1:
        return None
    fractions = counts / total
    return -(fractions * fractions.log()).sum().item() / math.log(total.item())


def repetition(rollouts: Rollouts) -> float | None:
    """The fraction of 8-token windows that came before in the same completion.

    None where no completion has 8 tokens.
    """
    tokens = rollouts.tokens
    if len(tokens) < WINDOW_TOKENS:
        return None
    rollout = segment_ids(rollouts.cu_seqlens, len(tokens))
    count = len(tokens) - WINDOW_TOKENS + 1
    windows = torch.zeros_like(tokens[:count])
    for place in range(WINDOW_TOKENS):  # a polynomial hash modulo 2**64
        windows = windows * 0x5851F42D4C957F2D + tokens[place : place + count] + 1
    is_inside = rollout[WINDOW_TOKENS - 1 :] == rollout[:count]
    windows = windows[is_inside]
    rollout = rollout[WINDOW_TOKENS - 1 :][is_inside]
    if not len(windows):
        return None
    ones = torch.ones_like(windows, dtype=torch.float64)
    occurrences = votes_per_key(windows, rollout, ones)
    return 1 - (1 / occurrences).sum().item() / len(windows)


def sample_rows(
    problems: list[Problem],
    rollouts: Rollouts,
    tokenizer: PreTrainedTokenizerBase,
    answers: dict[int, list[str | None]],
    agrees: Tensor,
    correct: Tensor | None,
) -> list[dict]:
    """The first completions of the first prompts, for samples.jsonl and the report."""
    group_bounds = rollouts.cu_groups.tolist()
    offsets = rollouts.cu_seqlens.tolist()
    rows = []
    for group, problem in enumerate(problems[:SAMPLED_PROMPTS]):
        first = group_bounds[group]
        last = min(first + SAMPLED_COMPLETIONS, group_bounds[group + 1])
        for index in range(first, last):
            rows.append(
                {
                    "prompt": problem.prompt,
                    "completion": tokenizer.decode(
                        rollouts.tokens[offsets[index] : offsets[index + 1]]
                    ),
                    "answer": answers[group][index - first],
                    "gold": problem.gold,
                    "majority": bool(agrees[index]),
                    "correct": None if correct is None else bool(correct[index]),
                    "truncated": bool(rollouts.truncated[index]),
                }
            )
    return rows


def over_cap(objective: Objective, logprobs: Tensor, batch: MicroBatch) -> Tensor:
    """[n] bool: tokens whose sampler correction is over the cap.

    The correction is exp(logprobs - sampler_logprobs), of the token or of its whole completion.
    """
    log_correction = (logprobs - batch.sampler_logprobs).nan_to_num()
    if objective.correction.startswith("sequence"):
        rollout = segment_ids(batch.cu_seqlens, len(logprobs))
        zeros = torch.zeros(len(batch.rollout_index), device=logprobs.device)
        log_correction = zeros.index_add(0, rollout, log_correction)[rollout]
    return log_correction > math.log(objective.correction_cap)


SUMMED_OVER_RANKS = (
    "loss",
    "entropy",
    "tokens",
    "correction",
    "tokens_over_cap",
    "tokens_with_correction",
    "rows",
)


@dataclass
class StepTotals:
    """Sums over the micro-batches of a step's training pass."""

    loss: float = 0.0
    grad_norm: float = 0.0
    entropy: float = 0.0
    tokens: int = 0
    train_mismatch_max: float = 0.0
    correction: float = 0.0
    tokens_over_cap: int = 0
    tokens_with_correction: int = 0
    rows: int = 0
    updates: int = 0

    def add(self, result: PolicyLoss, batch: MicroBatch, objective: Objective) -> None:
        """Add a micro-batch."""
        if objective.correction != "none":
            old = result.logprobs if batch.old_logprobs is None else batch.old_logprobs
            is_over = over_cap(objective, old, batch)
            self.correction += (result.correction * result.rows).item()
            self.tokens_over_cap += int(is_over.sum().item())
            self.tokens_with_correction += len(is_over)
            self.rows += int(result.rows.item())
        self.loss += result.loss.item()
        assert result.entropies is not None
        self.entropy += result.entropies.nansum().item()
        # Tokens that a correction masks have no entropy.
        self.tokens += int(result.entropies.isfinite().sum().item())
        if not self.updates:  # later updates are off policy: a mismatch there is no error
            mismatch = (result.logprobs - batch.sampler_logprobs).abs().nan_to_num()
            if len(mismatch):
                self.train_mismatch_max = max(self.train_mismatch_max, mismatch.max().item())

    def over_ranks(self, world: World) -> StepTotals:
        """The totals of all ranks. grad_norm and updates are those of every rank. Collective."""
        sums = torch.tensor(
            [getattr(self, name) for name in SUMMED_OVER_RANKS], dtype=torch.float64
        )
        values = dict(zip(SUMMED_OVER_RANKS, world.sum(sums).tolist(), strict=True))
        largest = torch.tensor(self.train_mismatch_max, dtype=torch.float64)
        return replace(self, **values, train_mismatch_max=world.max(largest).item())

    def metrics(self) -> dict[str, float]:
        """Means over updates and tokens. Only the count if there was no update.

        train_mismatch_max: the largest difference, in nats, between the sampler's and the trainer's
        log-prob of a token. On policy it is rounding alone. With a sampler correction: its mean,
        and correction_clipped, the fraction of tokens over the cap.
        """
        if not self.updates:
            return {"updates": 0}
        values: dict[str, float] = {}
        if self.tokens_with_correction:
            values["correction"] = self.correction / max(self.rows, 1)
            values["correction_clipped"] = self.tokens_over_cap / self.tokens_with_correction
        return values | {
            "loss": self.loss / self.updates,
            "grad_norm": self.grad_norm / self.updates,
            "entropy": self.entropy / max(self.tokens, 1),
            "train_mismatch_max": self.train_mismatch_max,
            "updates": self.updates,
        }
