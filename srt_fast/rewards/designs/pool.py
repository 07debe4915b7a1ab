"""One vote of policy and teacher: r_i = 1[a_i = m], m the majority of the policy's and a moving-average teacher's answers.

M-GRPO (arXiv 2512.13070): M rollouts of the policy and N of a momentum teacher (a = 0.99) vote, the M train. Reported to end
where it peaks on MATH (79.8 for Qwen3-4B, plain vote 79.2 at its peak and 47.5 at the end). Of the source's N = G / 4 the
teacher has little say: here it has as many rollouts as the policy unless told otherwise. Left out: its filter of low-entropy
rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.rewards.base import check_teacher
from srt_fast.types import Groups, Reward
from srt_kernels.core.segments import segment_ids
from srt_kernels.groups.majority_vote import majority_vote


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Reward 1 for the pooled majority. Settings as of ema."""

    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})
    decay: float = 0.99
    final_decay: float = 0.99
    samples: int = 0

    def __post_init__(self):
        check_teacher(self.decay, self.final_decay, self.samples)

    def __call__(self, groups: Groups) -> Reward:
        """A tie goes to what the policy said first."""
        teacher = segment_ids(groups.cu_teacher, len(groups.teacher_keys))
        order = torch.argsort(torch.cat([groups.group_of(), teacher]), stable=True)
        pooled = torch.cat([groups.keys, groups.teacher_keys])[order]
        label = majority_vote(pooled, groups.cu_groups + groups.cu_teacher).majority
        return Reward(rewards=groups.agrees_with(label), keep=groups.everyone())
