"""A step's numbers for the log: what the vote says, what the training pass did, and a few samples to read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from srt_fast.types import MicroBatch, Problem, Rollouts
from srt_kernels.core.segments import segment_ids
from srt_kernels.groups.majority_vote import Vote, votes_per_key
from srt_kernels.lm_head.linear_policy_loss import PolicyLoss
from srt_kernels.objective.objective import Objective

SAMPLED_PROMPTS, SAMPLED_COMPLETIONS = 2, 3


def vote_metrics(
    vote: Vote, correct: Tensor | None, cu_groups: Tensor, rewards: Tensor
) -> dict[str, float | None]:
    """Figures of P groups' votes. With gold: accuracy of the samples (pass1), how often the reward is the one that gold would
    give (reward_accuracy), and of the labels that earn it, where some rollout of the group does (label_accuracy). A design whose
    rewards [R] are not 0 and 1 has no labels: then both are of the vote.

    top_answer_share is the largest share of prompts that one answer is the majority of: towards 1 it shows the collapse to a
    constant answer. answer_entropy is the entropy of the majorities over the prompts, in nats, as a part of its largest value:
    1 where no two prompts have the same one, 0 where all do.
    """
    counts = vote.majority[vote.majority != 0].unique(return_counts=True)[1].double()
    parts = counts / counts.sum()
    spread = (
        -(parts * parts.log()).sum().item() / math.log(counts.sum().item())
        if counts.sum() > 1
        else None
    )
    values = {
        "vote_share": vote.share.mean().item(),
        "unanimous": (vote.share == 1).float().mean().item(),
        "no_answer": 1 - vote.valid.float().mean().item(),
        "top_answer_share": (counts.max().item() if len(counts) else 0) / len(vote.majority),
        "answer_entropy": spread,
    }
    if correct is None:
        return values
    agrees = rewards.bool() if ((rewards == 0) | (rewards == 1)).all() else vote.rewards.bool()
    group = torch.repeat_interleave(
        torch.arange(len(vote.majority), device=correct.device), cu_groups.diff()
    )
    nothing = torch.zeros(len(vote.majority), device=correct.device)
    labelled, right = (
        nothing.index_add(0, group, some.float()) > 0 for some in (agrees, agrees & correct)
    )
    return values | {
        "pass1": correct.float().mean().item(),
        "label_accuracy": right[labelled].float().mean().item(),
        "reward_accuracy": (agrees == correct).float().mean().item(),
    }


def repetition(rollouts: Rollouts) -> float | None:
    """The part of the 8-token windows that came before in the same completion; None where no completion has 8 tokens."""
    tokens, size = rollouts.tokens, 8
    if len(tokens) < size:
        return None
    group = segment_ids(rollouts.cu_seqlens, len(tokens))
    windows = torch.zeros_like(tokens[size - 1 :])
    for place in range(size):  # a polynomial hash modulo 2**64
        windows = windows * 0x5851F42D4C957F2D + tokens[place : len(tokens) - size + 1 + place] + 1
    inside = group[size - 1 :] == group[: len(group) - size + 1]
    windows, group = windows[inside], group[size - 1 :][inside]
    if not len(windows):
        return None
    times = votes_per_key(windows, group, torch.ones_like(windows, dtype=torch.float64))
    return 1 - (1 / times).sum().item() / len(windows)


def sample_rows(
    problems: list[Problem],
    rollouts: Rollouts,
    tokenizer,
    answers: list[str | None],
    agrees: Tensor,
    correct: Tensor | None,
) -> list[dict]:
    """The first completions of the first prompts, for samples.jsonl and the report."""
    starts, offsets, rows = rollouts.cu_groups.tolist(), rollouts.cu_seqlens.tolist(), []
    for problem, first, last in zip(problems[:SAMPLED_PROMPTS], starts, starts[1:], strict=False):
        for index in range(first, min(first + SAMPLED_COMPLETIONS, last)):
            text = tokenizer.decode(rollouts.tokens[offsets[index] : offsets[index + 1]])
            rows.append(
                {
                    "prompt": problem.prompt,
                    "completion": text,
                    "answer": answers[index],
                    "gold": problem.gold,
                    "majority": bool(agrees[index]),
                    "correct": None if correct is None else bool(correct[index]),
                    "truncated": bool(rollouts.truncated[index]),
                }
            )
    return rows


def over_cap(objective: Objective, logprobs: Tensor, batch: MicroBatch) -> Tensor:
    """[n] bool: tokens whose sampler correction, exp(logprobs - sampler's) of the token or of its whole completion, is over
    the cap."""
    log_correction = (logprobs - batch.sampler_logprobs).nan_to_num()
    if objective.correction.startswith("sequence"):
        rollout = torch.repeat_interleave(batch.cu_seqlens.diff(), output_size=len(logprobs))
        nothing = torch.zeros(len(batch.rollout_index), device=logprobs.device)
        log_correction = nothing.index_add(0, rollout, log_correction)[rollout]
    return log_correction > math.log(objective.correction_cap)


@dataclass
class StepTotals:
    """Sums over the micro-batches of a step's training pass."""

    loss: float = 0.0
    grad_norm: float = 0.0
    entropy: float = 0.0
    tokens: int = 0
    train_mismatch_max: float = 0.0
    correction: float = 0.0
    over_cap: int = 0
    corrected: int = 0
    rows: int = 0
    updates: int = 0

    def add(
        self, result: PolicyLoss, batch: MicroBatch, old: Tensor | None, objective: Objective
    ) -> None:
        """A micro-batch; old [n] log-probs before the step's first update, None where they are the current ones."""
        if objective.correction != "none":
            over = over_cap(objective, result.logprobs if old is None else old, batch)
            self.correction += (result.correction * result.rows).item()
            self.over_cap, self.corrected = (
                self.over_cap + over.sum().item(),
                self.corrected + len(over),
            )
            self.rows += result.rows.item()
        self.loss += result.loss.item()
        self.entropy += result.entropies.nansum().item()
        self.tokens += (
            result.entropies.isfinite().sum().item()
        )  # tokens that a correction masks have none
        if not self.updates:  # later updates are off policy: there the gap is not an error
            gap = (result.logprobs - batch.sampler_logprobs).abs().nan_to_num()
            self.train_mismatch_max = max(self.train_mismatch_max, gap.max().item())

    def metrics(self) -> dict[str, float]:
        """Means over updates and tokens; only the count where there was no update.

        train_mismatch_max: largest difference, in nats, between the sampler's and the trainer's log-prob of a token; on policy
        it is rounding alone. With a sampler correction: its mean, and the share of tokens whose correction was over the cap,
        which truncate cuts and mask leaves out.
        """
        if not self.updates:
            return {"updates": 0}
        correction = (
            {}
            if not self.corrected
            else {
                "correction": self.correction / max(self.rows, 1),
                "correction_clipped": self.over_cap / self.corrected,
            }
        )
        return correction | {
            "loss": self.loss / self.updates,
            "grad_norm": self.grad_norm / self.updates,
            "entropy": self.entropy / max(self.tokens, 1),
            "train_mismatch_max": self.train_mismatch_max,
            "updates": self.updates,
        }
