"""The vote, and a second task: to tell of own rollouts whether they agree with it.

RISE (arXiv 2505.13445) and Self-Verify (arXiv 2506.01369) train on verification prompts T(x, y)
beside the problems. Their target is the gold reward of the outcome. Without labels the target is
the vote's reward (ours; untested by others): a verdict has reward 1 if it equals the pseudo-label.
A step has `solutions` verification prompts. Half of them are about rollouts that agree with the
vote, half about others, if there are enough of both. Each prompt has `samples` sampled verdicts,
which join the batch. The truth of the second task is the vote's: it cannot correct a vote that has
gone wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

from srt_fast.rewards.base import QUESTION, Requirement, VerificationTask, keep_all
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Reward 1 for the majority's answer. `question`: as of self_judge."""

    question: str = QUESTION
    solutions: int = 16
    samples: int = 8

    @property
    def requires(self) -> tuple[Requirement, ...]:
        task = VerificationTask(
            question=self.question, solutions=self.solutions, samples=self.samples
        )
        return (task,)

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.vote.rewards, keep=keep_all(groups))
