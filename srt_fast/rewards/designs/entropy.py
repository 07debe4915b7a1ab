"""Low entropy as the reward: r_i = -mean_t H_t, and `no_answer` where no answer is found.

RENT (arXiv 2505.22660), which gives -7 to what cannot be parsed. Minimising entropy rises like the vote and then collapses,
into repetition (arXiv 2603.08660).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Reward in nats, at most 0."""

    requires: ClassVar[frozenset[str]] = frozenset({"entropies"})
    no_answer: float = -7.0

    def __call__(self, groups: Groups) -> Reward:
        certainty = -groups.mean_over_tokens(groups.entropies)
        return Reward(
            rewards=certainty.where(groups.keys != 0, self.no_answer), keep=groups.everyone()
        )
