"""A coin: r_i is 1 with probability `probability`, whatever the rollout says. A control.

"Spurious rewards" (arXiv 2506.10947) raised Qwen2.5-Math-7B by 21 points on MATH-500 with such
rewards, gold ones by 29; Llama 3 and OLMo 2 did not rise. The source explains it by the clipping of
GRPO, which favours what the model does most already. So **a gain of this reward function is no
evidence of learning**, and a gain of another one counts only as far as it exceeds this one's, on
the same model. On policy nothing is clipped, and the expected gradient is 0.

It needs no labels, no vote and no answers. The draws are of torch's generator on the CPU, which
checkpoints hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.rewards.base import Requirement, keep_all
from srt_fast.transfer import send
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Random:
    """Reward 1 or 0 by chance. `probability`: of 1."""

    requires: ClassVar[tuple[Requirement, ...]] = ()

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"reward.params: probability: expected 0 to 1, got {self.probability}")

    def __call__(self, groups: Groups) -> Reward:
        drawn = torch.rand(len(groups.keys))
        [rewards] = send([(drawn < self.probability).float()], groups.keys.device)
        return Reward(rewards=rewards, keep=keep_all(groups))
