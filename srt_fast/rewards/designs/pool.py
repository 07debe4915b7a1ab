"""One vote of policy and teacher: r_i = 1[a_i = m].

m is the majority of the answers of the policy and of an EMA teacher.

M-GRPO (arXiv 2512.13070): M rollouts of the policy and N of a momentum teacher (a = 0.99) vote. The
M rollouts train. Reported to end where it peaks on MATH (79.8 for Qwen3-4B; the plain vote peaks at
79.2 and ends at 47.5). With the source's N = G / 4 the teacher has little say. Here the teacher has
as many rollouts as the policy by default.

`low_entropy` is the source's filter of low-entropy rollouts, with 0.75 there. A rollout whose mean
token entropy is below Q1 - low_entropy (Q3 - Q1) votes and does not train. Q1 and Q3 are the
quartiles of its group. Over what the source takes them was not at hand: the group is ours. The
filter costs a forward pass and is off by default. No part needs labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srt_fast.rewards.base import (
    EMATeacher,
    Requirement,
    TokenEntropies,
    group_index,
    group_quantile,
    keep_all,
    label_agreement,
    mean_over_tokens,
)
from srt_fast.types import Groups, Reward
from srt_kernels import majority_vote
from srt_kernels.core.segments import segment_ids


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Reward 1 for the pooled majority. In a tie the policy's earliest answer wins.

    `decay`, `final_decay`, `samples`: as of ema. `low_entropy`: how many interquartile ranges below
    the first quartile a rollout's entropy may be. None: all train.
    """

    decay: float = 0.99
    final_decay: float = 0.99
    samples: int = 0
    low_entropy: float | None = None

    def __post_init__(self) -> None:
        if self.low_entropy is not None and not self.low_entropy >= 0:
            raise ValueError(
                f"reward.params: low_entropy: expected at least 0 or null, got {self.low_entropy}"
            )

    @property
    def requires(self) -> tuple[Requirement, ...]:
        teacher = EMATeacher(decay=self.decay, final_decay=self.final_decay, samples=self.samples)
        return (teacher,) if self.low_entropy is None else (teacher, TokenEntropies())

    def __call__(self, groups: Groups) -> Reward:
        assert groups.teacher_keys is not None and groups.cu_teacher is not None
        teacher_group = segment_ids(groups.cu_teacher, len(groups.teacher_keys))
        order = torch.argsort(torch.cat([group_index(groups), teacher_group]), stable=True)
        pooled_keys = torch.cat([groups.keys, groups.teacher_keys])[order]
        labels = majority_vote(pooled_keys, groups.cu_groups + groups.cu_teacher).majority
        return Reward(rewards=label_agreement(groups, labels), keep=self._keep(groups))

    def _keep(self, groups: Groups) -> Tensor:
        """[R] bool: rollouts whose entropy is not too low."""
        if self.low_entropy is None:
            return keep_all(groups)
        assert groups.entropies is not None
        entropies = mean_over_tokens(groups, groups.entropies)
        first = group_quantile(groups, entropies, 0.25)
        third = group_quantile(groups, entropies, 0.75)
        least = first - self.low_entropy * (third - first)
        return entropies >= least[group_index(groups)]
