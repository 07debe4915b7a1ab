"""Which prompts count more, and supervised steps between the others. Both go by the vote alone."""

from __future__ import annotations

from dataclasses import replace

from srt_fast.types import Groups, Reward


def head_tail(reward: Reward, groups: Groups, power: float) -> Reward:
    """Weigh each prompt by (1 - f_m)^power, f_m the majority's share, scaled to mean 1 over the prompts: hard ones count more.

    Head-tail rebalancing (arXiv 2510.26474) caps the trajectories of easy prompts, repeats and resamples those of hard ones in
    proportion to 1 - accuracy. Here f_m stands for the accuracy, which needs gold, and a weight on the advantage for repeats:
    the same gradient in expectation, no rollout twice. Left out: sampling hard prompts more often. power 0: the reward as it
    is.
    """
    if not power:
        return reward
    hardness = (1 - groups.vote.share).clamp_min(0) ** power
    hardness = (hardness / hardness.mean().clamp_min(1e-9))[groups.group_of()]
    return replace(
        reward, weights=hardness if reward.weights is None else reward.weights * hardness
    )
