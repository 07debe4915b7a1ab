"""The vote, and a second task: to say of own rollouts whether they agree with it.

RISE (arXiv 2505.13445) and Self-Verify (arXiv 2506.01369) train on verification prompts T(x, y) beside the problems, with the
outcome's gold reward as their target. Without labels the target is the vote's reward (ours; untested by others): the verdict
earns 1 where it is the pseudo-label. The verification prompts of a step, `solutions` of them, half of what the vote accepts
and half of what it rejects where there are enough, each with `samples` sampled verdicts, join its batch. The second task's
truth is the vote's: it cannot correct a vote that has gone wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import QUESTION, check_question
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Reward 1 for the majority's answer. `question` as of self_judge."""

    requires: ClassVar[frozenset[str]] = frozenset({"verification"})
    question: str = QUESTION
    solutions: int = 16
    samples: int = 8

    def __post_init__(self):
        check_question(self.question)
        if self.solutions < 1 or self.samples < 2:
            raise ValueError(
                "reward.params: expected at least 1 solution and 2 samples, got "
                f"solutions={self.solutions}, samples={self.samples}"
            )

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.vote.rewards, keep=groups.everyone())
