"""Agreement with the gold answer: the supervised upper bound of label-free rewards (RLVR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import GoldAnswers, Requirement, keep_all
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Reward 1 for a correct answer, 0 otherwise. No other reward function sees gold answers."""

    requires: ClassVar[tuple[Requirement, ...]] = (GoldAnswers(),)

    def __call__(self, groups: Groups) -> Reward:
        assert groups.correct is not None
        return Reward(rewards=groups.correct.float(), keep=keep_all(groups))
