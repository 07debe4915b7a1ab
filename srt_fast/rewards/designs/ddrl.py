"""The most frequent and the rarest rollouts of a group, with fixed advantages: A_i = 1 or -1.

DDRL (arXiv 2604.21327; code at yuyongcan/DDRL). Of n rollouts K = fraction * n train. K+ = min(c_m,
K / 2) are of the majority m, which has c_m votes. K- = K - K+ are those whose answer has the fewest
votes; a rollout without an answer has none. A_i = 1 if a_i = m, else -1. No group mean moves it, so
few wrong answers get no large weight. Rollouts of middling frequency are the noisiest, says the
source, and are left out. It needs no labels; the source needs none either. A unanimous group trains
too, with A = 1.

Ours: a group without any answer has A = 0 (in the source's code -1). In a tie of two answers only
the majority's rollouts count as the most frequent. Left out: the source's second stage, supervised
steps on the majority's completions. train.objective "sft" does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.rewards.base import Requirement, answer_votes, group_index
from srt_fast.types import Groups, Reward
from srt_kernels.core.segments import segment_reduce


@dataclass(frozen=True, kw_only=True)
class Ddrl:
    """Sets the advantages itself: train.advantage is not used.

    `fraction`: the fraction of a group that trains, rounded down, at least one rollout.
    """

    requires: ClassVar[tuple[Requirement, ...]] = ()

    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"reward.params: fraction: expected more than 0, at most 1, got {self.fraction}"
            )

    def __call__(self, groups: Groups) -> Reward:
        group = group_index(groups)
        sizes = groups.cu_groups.diff()
        agrees = groups.vote.rewards
        trained = (self.fraction * sizes.double()).long().clamp_min(1)
        frequent = segment_reduce(agrees.double(), "sum", groups.cu_groups).long()
        frequent = frequent.minimum(trained // 2)
        # By votes, the most first. The majority comes before an answer with as many votes.
        order = torch.argsort(answer_votes(groups) + 0.5 * agrees, descending=True, stable=True)
        order = order[torch.argsort(group[order], stable=True)]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        place -= groups.cu_groups[group]
        is_frequent = place < frequent[group]
        is_rare = place >= (sizes - (trained - frequent))[group]
        has_answer = (groups.vote.majority != 0)[group]
        return Reward(
            rewards=agrees,
            keep=is_frequent | is_rare,
            advantages=(2 * agrees - 1).where(has_answer, 0.0),
        )
