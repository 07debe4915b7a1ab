"""How far the policy's distributions are from uniform: r_i = mean_t KL(U || p_t) = mean_t [logsumexp(z_t) - mean_v z_tv - log V].

Intuitor (arXiv 2505.19590), which needs no answers at all. Against the vote on 18 math results of Co-rewarding (arXiv
2508.00410) it wins 4 and loses 14. A policy can become certain of anything: an offline scorer gets hacked, the online one
less so (arXiv 2603.08660 calls its failure gradual). The mean of z is one dot product with the mean row of the head: it costs
no second pass over the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class SelfCertainty:
    """Reward in nats, also for a rollout without an answer."""

    requires: ClassVar[frozenset[str]] = frozenset({"certainty"})

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.mean_over_tokens(groups.certainty), keep=groups.everyone())
