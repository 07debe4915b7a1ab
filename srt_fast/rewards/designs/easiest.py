"""The majority vote on the batch's easiest prompts: the ceil(fraction * P) groups with the largest majority share train.

`oversampling_keep_fraction` in SRT's code (arXiv 2505.21444). In the paper's figure the easiest third, chosen once before
training, peaks at 0.345 and stands at 0.297 after 1000 steps, where the plain vote is at 0; its text says that reward
saturates near 0.9. Here the choice is made anew in every batch, from the rollouts that train. A tie in share goes to
the earlier prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Easiest:
    """Reward 1 for the majority's answer. `fraction`: part of the batch's prompts that trains."""

    requires: ClassVar[frozenset[str]] = frozenset()

    fraction: float = 1 / 3

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"reward.params: fraction: expected more than 0, at most 1, got {self.fraction}"
            )

    def __call__(self, groups: Groups) -> Reward:
        share = groups.vote.share
        easiest = torch.argsort(share, descending=True, stable=True)[
            : math.ceil(self.fraction * len(share))
        ]
        chosen = torch.zeros_like(share, dtype=torch.bool)
        chosen[easiest] = True
        return Reward(rewards=groups.vote.rewards, keep=chosen[groups.group_of()])
