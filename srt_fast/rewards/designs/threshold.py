"""The majority vote where it is clear: r_i = 1[a_i = m] in groups with share f_m >= tau.

Other groups are masked.

SRT's `self_consistency_threshold` (arXiv 2505.21444, 0.6 in its configuration). A masked group does
not train and does not count in the loss's mean (in SRT's code its tokens still count). The paper
reports no collapse within its budget at 0.6 with resampling until the batch is full (appendix I.7).
Here that is reward.resample; without it the batch is smaller. It delays what a confident wrong
majority does, and does not undo it: a constant answer passes every threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import Requirement, group_index
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Reward 1 for the majority's answer. `tau`: the least share of a majority that trains."""

    requires: ClassVar[tuple[Requirement, ...]] = ()

    tau: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1:
            raise ValueError(f"reward.params: tau: expected 0 to 1, got {self.tau}")

    def __call__(self, groups: Groups) -> Reward:
        is_clear = groups.vote.share >= self.tau
        return Reward(rewards=groups.vote.rewards, keep=is_clear[group_index(groups)])
