"""Every answer is a label, by its share; weak groups are pushed down as a whole; prompts count by the starting model's agreement.

RESTRAIN (arXiv 2510.02172). Answer a of a group has share f_a and weight w_a = g(f_a) / sum_b g(f_b), g a Gaussian around
`center`. The advantage is that of GRPO with each answer in turn as the label, weighed: A_i = u sum_a w_a (1[a_i = a] - f_a) /
sqrt(f_a (1 - f_a)). A group whose largest share is below `weak` has A_i = -u `penalty` for all: no answer is trusted, all are
made less likely. u = g(share of the starting model's vote on the prompt), which is taken once. Reported (Qwen3-4B): 51.0 on
average, gold 51.4, TTRL 42.2 with a collapse after about 50 steps. The form of g and the three rules are the source's; its
values of sigma, kappa and delta were not at hand, the defaults are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.types import Groups, Reward
from srt_kernels.core.segments import segment_reduce


@dataclass(frozen=True, kw_only=True)
class Restrain:
    """Advantages of its own; train.advantage is not used. `samples`: the starting model's completions of a prompt, 0: as many as
    the policy's."""

    requires: ClassVar[frozenset[str]] = frozenset({"start"})
    center: float = 1.0
    sigma: float = 0.5
    weak: float = 0.2
    penalty: float = 1.0
    samples: int = 0

    def __post_init__(self):
        if not (self.sigma > 0 and 0 <= self.weak <= 1 and self.penalty >= 0 and self.samples >= 0):
            raise ValueError(
                "reward.params: expected sigma above 0, weak from 0 to 1, penalty and samples at least 0, got "
                f"sigma={self.sigma}, weak={self.weak}, penalty={self.penalty}, samples={self.samples}"
            )

    def __call__(self, groups: Groups) -> Reward:
        group, votes = groups.group_of(), groups.votes_of_own()
        share = votes / groups.cu_groups.diff()[group]
        once = 1 / votes.clamp_min(1)  # sums over rollouts with this factor are sums over answers
        trust = self._gaussian(share).where(votes > 0, 0.0)
        total = segment_reduce(trust * once, "sum", groups.cu_groups)
        weight = trust / total.clamp_min(1e-30)[group]
        spread = (share * (1 - share)).sqrt()
        normed = (weight / spread.clamp_min(1e-9)).where(spread > 0, 0.0)
        mean = segment_reduce(normed * share * once, "sum", groups.cu_groups)[group]
        advantages = (normed - mean).where(groups.vote.share[group] >= self.weak, -self.penalty)
        advantages = advantages * self._gaussian(groups.start_shares)[group]
        answered = (groups.vote.majority != 0)[group]
        return Reward(
            rewards=weight.float(),
            keep=groups.everyone(),
            advantages=advantages.where(answered, 0.0).float(),
        )

    def _gaussian(self, share):
        return torch.exp(-0.5 * ((share.double() - self.center) / self.sigma) ** 2)
