"""Agreement with the gold answer: the supervised upper bound that label-free designs are compared with (RLVR)."""

from __future__ import annotations

import torch

from srt_fast.feedback.base import Groups, Reward
from srt_fast.feedback.majority import Majority


class Oracle(Majority):
    """Reward 1 for a correct answer, 0 otherwise. The one design that sees gold answers."""

    needs_gold = True

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.correct.float(), keep=torch.ones_like(groups.keys, dtype=torch.bool))
