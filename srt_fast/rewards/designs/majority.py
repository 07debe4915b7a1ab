"""Agreement with the group's majority vote: r_i = 1[a_i = argmax_a sum_j 1[a_j = a]].

SRT (arXiv 2505.21444, Algorithm 1) and TTRL (arXiv 2504.16084). It needs no labels. On long runs
accuracy rises first and then collapses: the policy learns to give one constant answer, the
pseudo-reward goes to 1 and accuracy to 0. Watch `top_answer_share` in the metrics, stop early, or
lower the learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import Requirement, keep_all
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Majority:
    """Reward 1 for the majority's answer, 0 for another answer and for none."""

    requires: ClassVar[tuple[Requirement, ...]] = ()

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.vote.rewards, keep=keep_all(groups))
