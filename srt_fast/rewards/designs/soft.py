"""The vote share of a rollout's own answer: r_i = sum_j 1[a_j = a_i] / n, and 0 without an answer.

Groups whose majority has a share below `tau` are masked.

`soft_reward` in SRT's released code (arXiv 2505.21444,
verl/workers/reward_manager/self_learning.py). EMPO (arXiv 2504.05812) gives the same for its
clusters; there an unparsed answer is a cluster of its own (1/n, here 0). A group of five equally
frequent answers gives no gradient, where the hard vote would push one of them. It is not reported
to prevent collapse: the constant answer still has share 1.

With train.objective "scpo" it is ScPO (arXiv 2411.04109): the pair is the most and the least voted
answer, and its weight the difference of their shares. `tau` is ScPO's filter of prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import Requirement, answer_share, group_index
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Soft:
    """Reward in [0, 1]: the fraction of the group that agrees. `tau`: the least share of a majority
    that trains.
    """

    requires: ClassVar[tuple[Requirement, ...]] = ()

    tau: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1:
            raise ValueError(f"reward.params: tau: expected 0 to 1, got {self.tau}")

    def __call__(self, groups: Groups) -> Reward:
        is_clear = groups.vote.share >= self.tau
        return Reward(rewards=answer_share(groups), keep=is_clear[group_index(groups)])
