"""The majority vote, weighted by how much the answer belongs to the prompt.

The weight is w = max(0, f_m - b_m) / f_m.

f_m is the share of the majority m in its group. b_m is the share of m in the rollouts of all other
groups of the batch. An answer that is as frequent elsewhere says nothing about the prompt. The
constant answer of a collapse (f = b = 1) has weight 0. An answer that no other prompt gets has
weight 1. The weight multiplies the advantages after their normalisation, because the normalisation
would divide a smaller reward away. This function is ours (srt-fast) and untested by others. In
tasks with few possible answers (yes or no) all base rates are large, so the weights are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.rewards.base import Requirement, answer_votes, group_index, keep_all
from srt_fast.types import Groups, Reward
from srt_kernels.core.segments import segment_reduce
from srt_kernels.groups.majority_vote import votes_per_key


@dataclass(frozen=True, kw_only=True)
class BaseRate:
    """Reward 1 for the majority's answer, with a weight for each group."""

    requires: ClassVar[tuple[Requirement, ...]] = ()

    def __call__(self, groups: Groups) -> Reward:
        keys = groups.keys
        group = group_index(groups)
        sizes = groups.cu_groups.diff().double()
        agrees = groups.vote.rewards.bool()

        def majority_votes(votes: torch.Tensor) -> torch.Tensor:
            return segment_reduce(votes.where(agrees, 0.0), "max", groups.cu_groups)

        ones = torch.ones(len(keys), dtype=torch.float64, device=keys.device)
        votes_in_batch = votes_per_key(keys, torch.zeros_like(group), ones)
        group_votes = majority_votes(answer_votes(groups))
        batch_votes = majority_votes(votes_in_batch)
        base_rate = (batch_votes - group_votes) / (len(keys) - sizes).clamp_min(1)
        share = group_votes / sizes.clamp_min(1)
        weights = ((share - base_rate) / share.clamp_min(1e-9)).clamp_min(0.0)
        return Reward(
            rewards=groups.vote.rewards, keep=keep_all(groups), weights=weights.float()[group]
        )
