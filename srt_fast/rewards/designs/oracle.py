"""Agreement with the gold answer: the supervised upper bound that label-free designs are compared with (RLVR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Reward 1 for a correct answer, 0 otherwise. The one design that sees gold answers."""

    requires: ClassVar[frozenset[str]] = frozenset({"gold"})

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.correct.float(), keep=groups.everyone())
