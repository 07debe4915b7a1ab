"""The majority vote on the easiest prompts of a batch.

The easiest prompts are the ceil(fraction * P) groups with the largest majority share.

`oversampling_keep_fraction` in SRT's code (arXiv 2505.21444). The paper chooses the easiest third
once, before training. In its figure that run peaks at 0.345 and stands at 0.297 after 1000 steps,
where the plain vote is at 0. Its text says that reward saturates near 0.9. Here the choice is made
anew in every batch, from the rollouts that train. Among equal shares the earlier prompt is chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.rewards.base import Requirement, group_index
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Easiest:
    """Reward 1 for the majority's answer. `fraction`: the fraction of the batch's prompts that
    trains.
    """

    requires: ClassVar[tuple[Requirement, ...]] = ()

    fraction: float = 1 / 3

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"reward.params: fraction: expected more than 0, at most 1, got {self.fraction}"
            )

    def __call__(self, groups: Groups) -> Reward:
        share = groups.vote.share
        count = math.ceil(self.fraction * len(share))
        easiest = torch.argsort(share, descending=True, stable=True)[:count]
        is_easy = torch.zeros_like(share, dtype=torch.bool)
        is_easy[easiest] = True
        return Reward(rewards=groups.vote.rewards, keep=is_easy[group_index(groups)])
