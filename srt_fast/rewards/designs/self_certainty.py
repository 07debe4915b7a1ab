"""Distance of the policy's distributions from uniform: r_i = mean_t KL(U || p_t).

KL(U || p_t) = logsumexp(z_t) - mean_v z_tv - log V. Intuitor (arXiv 2505.19590) needs no answers at
all. Against the vote on 18 math results of Co-rewarding (arXiv 2508.00410) it wins 4 and loses 14.
A policy can become certain of anything. A scorer that is computed offline gets hacked; the online
one less (arXiv 2603.08660 calls its failure gradual). The mean of z is one dot product with the
mean row of the head: no second pass over the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import Requirement, TokenCertainty, keep_all, mean_over_tokens
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class SelfCertainty:
    """Reward in nats. A rollout without an answer has one too."""

    requires: ClassVar[tuple[Requirement, ...]] = (TokenCertainty(),)

    def __call__(self, groups: Groups) -> Reward:
        assert groups.certainty is not None
        return Reward(rewards=mean_over_tokens(groups, groups.certainty), keep=keep_all(groups))
