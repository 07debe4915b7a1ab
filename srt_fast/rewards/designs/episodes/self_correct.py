"""Self-correction: solve, then revise. Reward r1 for the solution, r2 + alpha (r2 - r1) for the
revision.

SCoRe (arXiv 2409.12917): r1 and r2 are 1 for an answer that is right. The bonus alpha (r2 - r1)
pays for a change from wrong to right and fines the reverse. Without it a model learns to answer
well at once and to change nothing. The source has alpha 10, a KL of 0.01, and gold labels. Here the
label is a vote (ours). The source's first stage trains the revision alone and holds the first
answer by a KL:

    stage I    --train.turn-weights 0 1 --train.objective-overrides kl=k3 kl_coef=0.01
    stage II   --train.objective-overrides kl=k3 kl_coef=0.01, from the model of stage I

Left out: the source's larger KL on the first turn in stage I. Ours is the same on both turns.
A revision's baseline is the mean over the revisions of its prompt. So a revision of a right answer
has less to win than one of a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from srt_fast.rewards.base import Requirement, keep_all
from srt_fast.rewards.turns import LabelSource, Turn, agreement, label_requirements
from srt_fast.types import Groups, Reward

REVISE = (
    "\nThere might be an error in the solution above. Correct it if there is one, and write the "
    "whole solution again.\n"
)
"""What a policy is asked behind its own solution."""


@dataclass(frozen=True, kw_only=True)
class SelfCorrect:
    """`alpha`: the weight of the bonus. `samples`: revisions of a solution. `limit`: the most
    solutions of a step that are revised, 0 for all. `labels`: majority, ema, frozen or oracle.
    """

    question: str = REVISE
    alpha: float = 10.0
    samples: int = 1
    limit: int = 0
    labels: LabelSource = "majority"

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ValueError(f"reward.params: alpha: expected at least 0, got {self.alpha}")

    @property
    def requires(self) -> tuple[Requirement, ...]:
        return label_requirements(self.labels)

    @property
    def turns(self) -> tuple[Turn, ...]:
        return (Turn(), Turn(question=self.question, samples=self.samples, limit=self.limit))

    def __call__(self, episode: Sequence[Groups]) -> list[Reward]:
        first, second = episode
        assert second.parent is not None
        solved = agreement(episode, 0).float()
        revised = agreement(episode, 1).float()
        shaped = revised + self.alpha * (revised - solved[second.parent])
        return [
            Reward(rewards=solved, keep=keep_all(first)),
            Reward(rewards=shaped, keep=keep_all(second)),
        ]
