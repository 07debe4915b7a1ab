"""Low entropy as the reward: r_i = -mean_t H_t, and `no_answer` for a rollout without an answer.

RENT (arXiv 2505.22660). It gives -7 to a completion that cannot be parsed. A run that minimises
entropy rises like the vote, and then collapses into repetition (arXiv 2603.08660).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import Requirement, TokenEntropies, keep_all, mean_over_tokens
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Reward in nats, at most 0."""

    requires: ClassVar[tuple[Requirement, ...]] = (TokenEntropies(),)

    no_answer: float = -7.0

    def __call__(self, groups: Groups) -> Reward:
        assert groups.entropies is not None
        rewards = -mean_over_tokens(groups, groups.entropies)
        return Reward(
            rewards=rewards.where(groups.keys != 0, self.no_answer), keep=keep_all(groups)
        )
