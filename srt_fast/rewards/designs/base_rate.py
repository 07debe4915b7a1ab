"""The majority vote less what it has everywhere: weight w = max(0, f_m - b_m) / f_m on the advantages of a group.

f_m is the share of the group's majority m in the group, b_m its share in the rollouts of all other groups of the batch.
An answer that is as frequent elsewhere as here says nothing about the prompt: the constant answer of a collapse (f = b =
1) weighs 0, an answer that no other prompt gets weighs 1. The weight comes after the advantage's normalisation, which would
divide a smaller reward away. Ours (srt-fast); untested by others. Tasks with few possible answers (yes or no) have large base
rates by themselves, and train less for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.types import Groups, Reward
from srt_kernels.core.segments import segment_reduce
from srt_kernels.groups.majority_vote import votes_per_key


@dataclass(frozen=True, kw_only=True)
class BaseRate:
    """Reward 1 for the majority's answer, weighed by how far it is this prompt's own."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, groups: Groups) -> Reward:
        keys, group, sizes = groups.keys, groups.group_of(), groups.cu_groups.diff().double()
        ones = torch.ones(len(keys), dtype=torch.float64, device=keys.device)
        agrees = groups.vote.rewards.bool()
        here, everywhere = (
            segment_reduce(votes.where(agrees, 0.0), "max", groups.cu_groups)
            for votes in (groups.votes_of_own(), votes_per_key(keys, torch.zeros_like(group), ones))
        )
        elsewhere = (everywhere - here) / (len(keys) - sizes).clamp_min(1)
        share = here / sizes.clamp_min(1)
        weights = ((share - elsewhere) / share.clamp_min(1e-9)).clamp_min(0.0)
        return Reward(
            rewards=groups.vote.rewards, keep=groups.everyone(), weights=weights.float()[group]
        )
