"""The vote share of a rollout's own answer: r_i = sum_j 1[a_j = a_i] / n, and 0 without an answer.

`soft_reward` in SRT's released code (arXiv 2505.21444, verl/workers/reward_manager/self_learning.py); EMPO (arXiv
2504.05812) gives the same for its clusters, with an unparsed answer as a cluster of its own (1/n there, 0 here). A group of
five equally frequent answers gives no gradient, where the hard vote would push one of them. Not reported to prevent
collapse: the constant answer still has share 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Soft:
    """Reward in [0, 1]: the part of the group that agrees."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.share_of_own(), keep=groups.everyone())
