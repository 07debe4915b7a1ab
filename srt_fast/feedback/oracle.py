"""Agreement with the gold answer: the supervised upper bound that label-free designs are compared with (RLVR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.feedback.base import Groups, Reward, Stateless


@dataclass(frozen=True, kw_only=True)
class Oracle(Stateless):
    """Reward 1 for a correct answer, 0 otherwise. The one design that sees gold answers."""

    needs_gold: ClassVar[bool] = True

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.correct.float(), keep=torch.ones_like(groups.keys, dtype=torch.bool))
