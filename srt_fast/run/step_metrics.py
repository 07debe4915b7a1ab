"""A step's numbers for the log: vote, rewards, training pass, and a few samples to read."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from srt_fast.distributed.world import World
from srt_fast.types import Batch, Layout, MicroBatch, PlayedTurn, Rollouts
from srt_kernels import Objective, PolicyLoss, Vote
from srt_kernels.core.segments import segment_ids
from srt_kernels.groups.majority_vote import votes_per_key

Figures = dict[str, Any]
"""Figures by their names: numbers, None, or 0-dim tensors that have not been read yet."""
Numbers = dict[str, Any]
"""Figures as numbers. None: unknown."""

WINDOW_TOKENS = 8
"""Tokens of the windows that `repetition` compares."""


@dataclass(frozen=True, kw_only=True)
class LoggedBatch:
    """What the log reads of a batch: R rollouts in P groups, in host memory."""

    layout: Layout
    vote: Vote
    keys: Tensor  # [R] int64
    rewards: Tensor  # [R] fp32
    keep: Tensor  # [R] bool
    truncated: Tensor  # [R] bool
    repetition: Tensor | None = None  # 0-dim. None: no completion is long enough
    correct: Tensor | None = None  # [R] bool
    start_labels: Tensor | None = None  # [P] int64
    peer_labels: Tensor | None = None  # [P, K] int64
    judge_scores: Tensor | None = None  # [R] fp32
    tokens: Tensor | None = None  # [N] int64. None: no text is read
    later: list[LoggedTurn] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LoggedTurn:
    """What the log reads of a later turn: R rollouts, in host memory."""

    turn: PlayedTurn
    keys: Tensor  # [R] int64
    rewards: Tensor  # [R] fp32
    truncated: Tensor  # [R] bool
    tokens: Tensor | None = None  # [N] int64. None: no text is read


def tensors_of(batch: Batch, *, texts: bool) -> dict[str, Tensor]:
    """What the log reads of a batch, on its device. texts: with the tokens."""
    groups = batch.groups
    tensors = {
        **{f"vote.{name}": tensor for name, tensor in vars(groups.vote).items()},
        "keys": groups.keys,
        "rewards": batch.reward.rewards,
        "keep": batch.reward.keep,
        "truncated": batch.rollouts.truncated,
        "repetition": repetition(batch.rollouts),
        "correct": groups.correct,
        "start_labels": groups.start_labels,
        "peer_labels": groups.peer_labels,
        "judge_scores": groups.judge_scores,
        "tokens": batch.rollouts.tokens if texts else None,
    }
    for number, (turn, reward) in enumerate(zip(batch.later, batch.later_rewards, strict=True), 2):
        tensors |= {
            f"turn{number}.keys": turn.groups.keys,
            f"turn{number}.rewards": reward.rewards,
            f"turn{number}.truncated": turn.rollouts.truncated,
            f"turn{number}.tokens": turn.rollouts.tokens if texts else None,
        }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def logged_batch(batch: Batch, tensors: dict[str, Tensor]) -> LoggedBatch:
    """The batch of tensors_of, which are in host memory now."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        part, _, field_name = name.rpartition(".")
        parts[part][field_name] = tensor
    later = [
        LoggedTurn(turn=turn, **parts[f"turn{number}"])
        for number, turn in enumerate(batch.later, 2)
    ]
    return LoggedBatch(
        layout=batch.rollouts.layout, vote=Vote(**parts["vote"]), later=later, **parts[""]
    )


def read_numbers(figures: Figures) -> Numbers:
    """The figures, read where they are still on the device: a host sync for each."""
    return {n: value.item() if isinstance(value, Tensor) else value for n, value in figures.items()}


def batch_metrics(batch: LoggedBatch, correct: Tensor | None) -> Numbers:
    """Figures of a step's rollouts and rewards. correct [R] bool: agreement with gold, if known."""
    values: Numbers = {}
    if batch.judge_scores is not None:
        values["judge_failures"] = batch.judge_scores.isnan().float().mean().item()
    if batch.start_labels is not None:
        values["label_coverage"] = (batch.start_labels != 0).float().mean().item()
    if batch.peer_labels is not None:
        values["label_coverage"] = (batch.peer_labels != 0).any(1).float().mean().item()
    cu_groups = torch.tensor(batch.layout.group_bounds)
    values |= vote_metrics(batch.vote, correct, cu_groups, batch.rewards, batch.keep)
    for number, turn in enumerate(batch.later, 2):
        values |= {f"turn{number}_{name}": value for name, value in turn_metrics(turn).items()}
    return values | {
        "pseudo_reward": batch.rewards.nanmean().item(),
        "truncated": batch.truncated.float().mean().item(),
        "completion_tokens": sum(batch.layout.lengths) / len(batch.truncated),
        "repetition": None if batch.repetition is None else batch.repetition.item(),
    }


def turn_metrics(turn: LoggedTurn) -> Numbers:
    """Figures of a later turn. Means are None if nothing was asked."""
    count = len(turn.rewards)
    return {
        "asked": len(turn.turn.conversations),
        "too_long": turn.turn.too_long,
        "reward": turn.rewards.nanmean().item() if count else None,
        "no_answer": (turn.keys == 0).float().mean().item() if count else None,
        "truncated": turn.truncated.float().mean().item() if count else None,
        "tokens": sum(turn.turn.rollouts.layout.lengths) / count if count else None,
    }


def vote_metrics(
    vote: Vote, correct: Tensor | None, cu_groups: Tensor, rewards: Tensor, keep: Tensor
) -> Numbers:
    """Figures of P groups' votes, from tensors in host memory.

    top_answer_share: the largest share of prompts that have one and the same majority. It goes to 1
    in a collapse to a constant answer.
    answer_entropy: the entropy of the majorities over prompts, as a fraction of its largest value.
    It is 1 if no two prompts share a majority, 0 if all do.

    With gold: pass1, the accuracy of the samples; vote_accuracy, that of the majorities;
    reward_accuracy, how often the reward is the one that gold would give; label_accuracy, the
    accuracy of the labels that have reward 1 in a group; kept_label_accuracy, of those among them
    whose prompt has a rollout to train on (keep [R] bool); label_j, Youden's J of the labels: how
    often right samples agree with them, less how often wrong ones do. A mean of nothing is NaN. If
    the rewards [R] are not 0 and 1, there are no labels. Then all but pass1 are of the vote.
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
    is_kept = zeros.index_add(0, group, keep.float()) > 0
    kept_agrees = agrees & is_kept[group]
    return values | {
        "pass1": correct.float().mean().item(),
        "vote_accuracy": _label_accuracy(vote.rewards.bool(), correct, cu_groups),
        "label_accuracy": _label_accuracy(agrees, correct, cu_groups),
        "kept_label_accuracy": _label_accuracy(kept_agrees, correct, cu_groups),
        "reward_accuracy": (agrees == correct).float().mean().item(),
        "label_j": (agrees[correct].float().mean() - agrees[~correct].float().mean()).item(),
    }


def _label_accuracy(agrees: Tensor, correct: Tensor, cu_groups: Tensor) -> float:
    """How often a group's label is correct, of the groups in which a rollout agrees with it.

    agrees, correct [R] bool. NaN if there is no such group.
    """
    group = segment_ids(cu_groups, len(agrees))
    zeros = torch.zeros(len(cu_groups) - 1, device=correct.device)
    has_label = zeros.index_add(0, group, agrees.float()) > 0
    is_right = zeros.index_add(0, group, (agrees & correct).float()) > 0
    return is_right[has_label].float().mean().item()


def _relative_entropy(counts: Tensor) -> float | None:
    """Entropy of counts over its largest value, log of their sum. None for fewer than two."""
    total = counts.sum()
    if total <= 1:
        return None
    fractions = counts / total
    return -(fractions * fractions.log()).sum().item() / math.log(total.item())


def repetition(rollouts: Rollouts) -> Tensor | None:
    """0-dim fp64: the fraction of 8-token windows that came before in the same completion.

    None where no completion has 8 tokens. Stays on the device.
    """
    if max(rollouts.layout.lengths) < WINDOW_TOKENS:
        return None
    tokens = rollouts.tokens
    rollout = segment_ids(rollouts.cu_seqlens, len(tokens))
    count = len(tokens) - WINDOW_TOKENS + 1
    windows = torch.zeros_like(tokens[:count])
    for place in range(WINDOW_TOKENS):  # a polynomial hash modulo 2**64
        windows = windows * 0x5851F42D4C957F2D + tokens[place : place + count] + 1
    is_inside = rollout[WINDOW_TOKENS - 1 :] == rollout[:count]
    # Windows over the end of a completion have weight 0: they are no occurrence of any.
    occurrences = votes_per_key(windows, rollout[:count], is_inside.double())
    distinct = (1 / occurrences).where(is_inside, 0.0).sum()
    return 1 - distinct / is_inside.sum()


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


SUMS = (
    "loss",
    "entropy",
    "tokens",
    "correction",
    "tokens_over_cap",
    "tokens_with_correction",
    "rows",
    "router_aux_loss",
)


class StepTotals:
    """Sums over the micro-batches of a step's training pass. They stay on the device.

    updates and grad_norm are of the host: the norm is read before each update.
    """

    def __init__(self, device: torch.device) -> None:
        self.updates = 0
        self.grad_norm = 0.0
        self.on_host: tuple[Tensor, Tensor] | None = None  # those of `tensors`
        self._has_correction = False
        self._has_router_loss = False
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self._mismatch_max = torch.zeros((), dtype=torch.float64, device=device)

    def add(
        self,
        result: PolicyLoss,
        batch: MicroBatch,
        objective: Objective,
        router_loss: Tensor | None = None,
    ) -> None:
        """Add a micro-batch. Does not synchronise with the host.

        router_loss: its part of the mini-batch's mean. None: there is no such loss.
        """
        assert result.entropies is not None
        # Tokens that a correction masks have no entropy.
        values = {
            "loss": result.loss,
            "entropy": result.entropies.nansum(),
            "tokens": result.entropies.isfinite().sum(),
        }
        self._has_correction = objective.correction != "none"
        if self._has_correction:
            old = result.logprobs if batch.old_logprobs is None else batch.old_logprobs
            is_over = over_cap(objective, old, batch)
            values["correction"] = result.correction * result.rows
            values["tokens_over_cap"] = is_over.sum()
            values["tokens_with_correction"] = torch.ones_like(is_over).sum()
            values["rows"] = result.rows
        if router_loss is not None:
            self._has_router_loss = True
            values["router_aux_loss"] = router_loss
        zero = torch.zeros_like(self._mismatch_max)
        self._sums += torch.stack([values.get(name, zero).detach().double() for name in SUMS])
        # Later updates are off policy: a mismatch there is no error.
        if not self.updates and len(result.logprobs):
            mismatch = (result.logprobs - batch.sampler_logprobs).abs().nan_to_num()
            self._mismatch_max = self._mismatch_max.maximum(mismatch.max().double())

    def tensors(self, world: World) -> tuple[Tensor, Tensor]:
        """The sums and the largest mismatch of all ranks. Collective. Does not wait."""
        return world.sum(self._sums.clone()), world.max(self._mismatch_max.clone())

    def metrics(self) -> Numbers:
        """Means over updates and tokens of all ranks. Only the count if there was no update.

        train_mismatch_max: the largest difference, in nats, between the sampler's and the trainer's
        log-prob of a token. On policy it is rounding alone. With a sampler correction: its mean,
        and correction_clipped, the fraction of tokens over the cap.
        """
        if self.on_host is None:
            return {"updates": 0}
        sums = dict(zip(SUMS, self.on_host[0].tolist(), strict=True))
        values: Numbers = {}
        if self._has_correction:
            values["correction"] = sums["correction"] / max(sums["rows"], 1)
            values["correction_clipped"] = sums["tokens_over_cap"] / sums["tokens_with_correction"]
        if self._has_router_loss:
            values["router_aux_loss"] = sums["router_aux_loss"] / self.updates
        return values | {
            "loss": sums["loss"] / self.updates,
            "grad_norm": self.grad_norm / self.updates,
            "entropy": sums["entropy"] / max(sums["tokens"], 1),
            "train_mismatch_max": self.on_host[1].item(),
            "updates": self.updates,
        }
