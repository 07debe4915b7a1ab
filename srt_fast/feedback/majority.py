"""Agreement with the group's majority vote: r_i = 1[a_i = argmax_a sum_j 1[a_j = a]].

SRT (arXiv 2505.21444, Algorithm 1) and TTRL (arXiv 2504.16084). No labels. Known to rise and then to collapse on long
runs: the policy learns to give one constant answer, pseudo-reward goes to 1 and accuracy to 0. Watch
`top_answer_share` in the metrics, stop early, or lower the learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from srt_fast.feedback.base import Groups, Reward, Stateless


@dataclass(frozen=True, kw_only=True)
class Majority(Stateless):
    """Reward 1 for the majority's answer, 0 for any other and for none."""

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.vote.rewards, keep=torch.ones_like(groups.keys, dtype=torch.bool))
