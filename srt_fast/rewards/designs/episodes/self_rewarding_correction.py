"""Solve, judge, revise what the own judgement rejects; supervised on consistent episodes, then RL.

Self-rewarding correction (arXiv 2502.19613). The model gives itself the signal to try again, so it
needs no verifier when it is used.

    solve    r = 1[answer = label]
    judge    r = 1[verdict = 1[answer = label]]
    revise   r = 1[answer = label], for solutions that the verdict rejects

An episode is consistent if the verdict is right, and what it rejects is revised to the label. The
source first trains supervised on such episodes, found by rejection sampling with gold labels, and
then by RL. Here a vote is the label (ours). Solutions that are rightly accepted, right verdicts and
right revisions of consistent episodes go into the supervised replay:

    stage I    --train.turn-weights 0 0 0 --curriculum.supervised-every 1
    stage II   from the model of stage I

The supervised steps of stage I learn from the last 256 of these completions. A larger
supervised_every in stage II mixes both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from srt_fast.rewards.base import QUESTION, Requirement, keep_all, sums_by
from srt_fast.rewards.turns import (
    CORRECT,
    LabelSource,
    Turn,
    agreement,
    label_requirements,
    verdict_agreement,
)
from srt_fast.types import Groups, Reward

REVISE = "\nYou found an error in the solution above. Correct it, and write the whole solution.\n"
"""What a policy is asked behind its own verdict. The conversation has the solution too."""


@dataclass(frozen=True, kw_only=True)
class SelfRewardingCorrection:
    """`question`: as of self_judge. `revise`: the question behind a rejection. `revisions`: of each
    rejected solution. `limit`: the most solutions of a step that are judged, 0 for all. `labels`:
    majority, ema, frozen or oracle.
    """

    question: str = QUESTION
    revise: str = REVISE
    revisions: int = 2
    limit: int = 0
    labels: LabelSource = "majority"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        return label_requirements(self.labels)

    @property
    def turns(self) -> tuple[Turn, ...]:
        verdict = Turn(question=self.question, limit=self.limit, reply="verdict")
        revision = Turn(question=self.revise, ask="rejected", samples=self.revisions)
        return (Turn(), verdict, revision)

    def __call__(self, episode: Sequence[Groups]) -> list[Reward]:
        right = [agreement(episode, 0), verdict_agreement(episode, 1), agreement(episode, 2)]
        marks = self._consistent(episode, *right)
        return [
            Reward(rewards=is_right.float(), keep=keep_all(groups), supervised=is_marked)
            for groups, is_right, is_marked in zip(episode, right, marks, strict=True)
        ]

    def _consistent(
        self, episode: Sequence[Groups], solved: Tensor, judged: Tensor, revised: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[R] bool of each turn: its right completions in consistent episodes."""
        first, second, third = episode
        assert second.parent is not None and third.parent is not None
        accepts = second.keys == CORRECT
        is_followed = _any_child(third.parent, revised, len(second.keys))
        verdicts = judged & (accepts | is_followed)
        solutions = solved & _any_child(second.parent, verdicts & accepts, len(first.keys))
        return solutions, verdicts, revised & judged[third.parent]


def _any_child(parent: Tensor, flags: Tensor, parents: int) -> Tensor:
    """[parents] bool: whether any completion of a parent has the flag. parent, flags [R]."""
    return sums_by(parent, flags.long(), parents) > 0
