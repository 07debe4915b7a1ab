"""Solve, criticise, revise: a critique is worth what its revisions gain.

    solve      r1 = 1[answer = label]
    criticise  r2 = mean of the r3 of its revisions - r1 of its solution
    revise     r3 = 1[answer = label]

AutoMathCritique (arXiv 2411.16579) trains a critique model on critiques, which it keeps if a
revision that follows them is right. Here the policy is its own critic, the filter is a reward, and
the label is a vote (ours). A critique of a right solution can only lose: it earns 0 if all its
revisions stay right. A critique's baseline is the mean over the critiques of its prompt, a
revision's the mean over the revisions of its critique. A critique without a revision has no reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from srt_fast.rewards.base import Requirement, keep_all, sums_by
from srt_fast.rewards.turns import LabelSource, Turn, agreement, label_requirements
from srt_fast.types import Groups, Reward

CRITICISE = (
    "\nCheck the solution above step by step. Say which step is wrong and why, or that all are "
    "right. Don't solve the problem again.\n"
)
REVISE = "\nWrite the whole solution again, with what the critique says corrected.\n"


@dataclass(frozen=True, kw_only=True)
class Critique:
    """`question`, `revise`: what is asked behind a solution and behind a critique. `critiques`: of
    each solution. `revisions`: of each critique, at least 2. `limit`: the most solutions of a step
    that are criticised, 0 for all. `labels`: majority, ema, frozen or oracle.
    """

    question: str = CRITICISE
    revise: str = REVISE
    critiques: int = 2
    revisions: int = 2
    limit: int = 64
    labels: LabelSource = "majority"

    def __post_init__(self) -> None:
        if self.revisions < 2:
            raise ValueError(f"reward.params: revisions: expected at least 2, got {self.revisions}")

    @property
    def requires(self) -> tuple[Requirement, ...]:
        return label_requirements(self.labels)

    @property
    def turns(self) -> tuple[Turn, ...]:
        critique = Turn(
            question=self.question, samples=self.critiques, limit=self.limit, reply="text"
        )
        revision = Turn(question=self.revise, samples=self.revisions, group="parent")
        return (Turn(), critique, revision)

    def __call__(self, episode: Sequence[Groups]) -> list[Reward]:
        first, second, third = episode
        assert second.parent is not None and third.parent is not None
        solved = agreement(episode, 0).float()
        revised = agreement(episode, 2).float()
        revisions = sums_by(third.parent, torch.ones_like(revised), len(second.keys))
        # NaN without a revision
        mean = sums_by(third.parent, revised, len(second.keys)) / revisions
        return [
            Reward(rewards=solved, keep=keep_all(first)),
            Reward(rewards=mean - solved[second.parent], keep=revisions > 0),
            Reward(rewards=revised, keep=keep_all(third)),
        ]
