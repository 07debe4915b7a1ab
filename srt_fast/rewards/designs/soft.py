"""The vote share of a rollout's own answer: r_i = sum_j 1[a_j = a_i] / n, and 0 without an answer.

`soft_reward` in SRT's released code (arXiv 2505.21444,
verl/workers/reward_manager/self_learning.py). EMPO (arXiv 2504.05812) gives the same for its
clusters; there an unparsed answer is a cluster of its own (1/n, here 0). A group of five equally
frequent answers gives no gradient, where the hard vote would push one of them. It is not reported
to prevent collapse: the constant answer still has share 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import Requirement, answer_share, keep_all
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Soft:
    """Reward in [0, 1]: the fraction of the group that agrees."""

    requires: ClassVar[tuple[Requirement, ...]] = ()

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=answer_share(groups), keep=keep_all(groups))
