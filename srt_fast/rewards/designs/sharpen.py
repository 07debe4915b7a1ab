"""The policy's own log-probability of a rollout: r_i = sum_t log p(y_t). For best of n.

SFT-Sharpening (arXiv 2412.01951): sample n completions, keep the one that the model itself finds
likeliest, fine-tune on it. That is train.objective "sft" with this reward: it trains on the highest
reward of each group. The model learns to say at once what it would choose among many, and gets no
new knowledge. It needs no labels, no vote and no answers; the source needs none either. With "dpo"
the likeliest is preferred to the least likely.

As a reward of a policy gradient it is reported to end in short or repeated text. The log-probs are
the sampler's, at its temperature. They are summed, so longer completions get less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import Requirement, keep_all
from srt_fast.types import Groups, Reward
from srt_kernels.core.segments import segment_reduce


@dataclass(frozen=True, kw_only=True)
class Sharpen:
    """Reward in nats, at most 0. A rollout without an answer has one too."""

    requires: ClassVar[tuple[Requirement, ...]] = ()

    def __call__(self, groups: Groups) -> Reward:
        rewards = segment_reduce(groups.logprobs, "sum", groups.cu_seqlens).float()
        return Reward(rewards=rewards, keep=keep_all(groups))
