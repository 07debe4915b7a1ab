"""Every rollout as it is: r_i = 1. For SSD, with train.objective "sft".

SSD, simple self-distillation (arXiv 2604.01193): sample once with a temperature and truncated
distributions (sampling.top_p, top_k), then fine-tune on all samples, right or wrong. Reported:
Qwen3-30B-Instruct on LiveCodeBench v6 from 42.4 to 55.3 pass@1. What the truncation cut away gets
less likely; nothing says what is right. It needs no labels, no vote and no answers. With another
train.objective than "sft" all advantages are 0, so nothing trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.rewards.base import Requirement, keep_all
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Raw:
    """Reward 1 for every rollout."""

    requires: ClassVar[tuple[Requirement, ...]] = ()

    def __call__(self, groups: Groups) -> Reward:
        ones = torch.ones(len(groups.keys), device=groups.keys.device)
        return Reward(rewards=ones, keep=keep_all(groups))
