"""Which prompts and rollouts count more. The vote alone decides."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from srt_fast.rewards.base import group_index
from srt_fast.types import Groups, Reward


def head_tail(reward: Reward, groups: Groups, power: float) -> Reward:
    """Weight each prompt by (1 - f_m)^power, scaled to mean 1 over the prompts of a sampling.

    f_m is the majority's share: hard prompts count more. Head-tail rebalancing (arXiv 2510.26474)
    caps the trajectories of easy prompts. It repeats and resamples those of hard prompts in
    proportion to 1 - accuracy. Here f_m stands for the accuracy, which needs gold. A weight on the
    advantage stands for repeats: it has the same gradient in expectation. The other parts are
    cap_easy and draw_hard.
    """
    hardness = (1 - groups.vote.share).clamp_min(0) ** power
    hardness = hardness / hardness.mean().clamp_min(1e-9)
    weights = hardness[group_index(groups)]
    if reward.weights is not None:
        weights = reward.weights * weights
    return replace(reward, weights=weights)


def cap_easy(reward: Reward, groups: Groups, cap: int) -> Reward:
    """Mask all but the first `cap` rollouts of each group that agree with its majority."""
    agrees = groups.vote.rewards > 0
    counts = agrees.long().cumsum(0)
    before = torch.cat([counts.new_zeros(1), counts])[groups.cu_groups[:-1].long()]
    number = counts - before[group_index(groups)]  # of an agreeing rollout, from 1 in its group
    return replace(reward, keep=reward.keep & ~(agrees & (number > cap)))


def draw_hard(shares: Tensor, fraction: float) -> list[int]:
    """At most this fraction of the prompts that train, drawn without repeats by 1 - share, in
    their order.

    shares [P] fp32 in host memory, negative for a prompt that does not train. A prompt without any
    answer (share 0) is not drawn. Draws from torch's generator on the CPU.
    """
    hardness = (1 - shares).clamp_min(0).where(shares > 0, 0.0)
    count = min(int(fraction * (shares >= 0).sum()), int((hardness > 0).sum()))
    if not count:
        return []
    return hardness.multinomial(count).sort().values.tolist()
