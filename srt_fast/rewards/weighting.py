"""Which prompts count more. The vote alone decides."""

from __future__ import annotations

from dataclasses import replace

from srt_fast.rewards.base import group_index
from srt_fast.types import Groups, Reward


def head_tail(reward: Reward, groups: Groups, power: float) -> Reward:
    """Weight each prompt by (1 - f_m)^power, scaled to mean 1 over the prompts.

    f_m is the majority's share: hard prompts count more. Head-tail rebalancing (arXiv 2510.26474)
    caps the trajectories of easy prompts. It repeats and resamples those of hard prompts in
    proportion to 1 - accuracy. Here f_m stands for the accuracy, which needs gold. A weight on the
    advantage stands for repeats: it has the same gradient in expectation. Left out: sampling hard
    prompts more often.
    """
    hardness = (1 - groups.vote.share).clamp_min(0) ** power
    hardness = hardness / hardness.mean().clamp_min(1e-9)
    weights = hardness[group_index(groups)]
    if reward.weights is not None:
        weights = reward.weights * weights
    return replace(reward, weights=weights)
