"""The vote, and a second turn: to tell of own rollouts whether they agree with the label.

RISE (arXiv 2505.13445) and Self-Verify (arXiv 2506.01369) train on verification prompts T(x, y)
beside the problems. Their target is the gold reward of the outcome. Without labels the target is
agreement with the vote (ours; untested by others). A step has `solutions` verification prompts.
Half of them are about rollouts that agree with the label, half about others, if there are enough of
both. Each prompt has `samples` sampled verdicts, with a baseline of their own.

    r = 1 if the answer is the label (of a verdict: if it says what the label says)
    r = `wrong` for another answer, `no_answer` without one: 0 and 0; RISE has -0.5 and -1

The truth of the second turn is the label's: it cannot correct a vote that has gone wrong. An
evaluation asks for a verdict on every sample. It reports how often they are right, and the vote
weighted by them (`maj_verdict`), as RISE does at test time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from srt_fast.rewards.base import QUESTION, Requirement, check_question, keep_all
from srt_fast.rewards.turns import (
    LabelSource,
    Turn,
    agreement,
    label_requirements,
    verdict_agreement,
)
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Verify:
    """`question`: as of self_judge. `labels`: majority, ema, frozen or oracle."""

    question: str = QUESTION
    solutions: int = 16
    samples: int = 8
    wrong: float = 0.0
    no_answer: float = 0.0
    labels: LabelSource = "majority"

    def __post_init__(self) -> None:
        check_question(self.question)
        if self.solutions < 1 or self.samples < 2:
            raise ValueError(
                "reward.params: expected at least 1 solution and 2 samples, "
                f"got solutions={self.solutions}, samples={self.samples}"
            )
        if max(self.wrong, self.no_answer) > 1:
            raise ValueError(
                "reward.params: expected wrong and no_answer of at most 1, the reward of a right "
                f"answer, got wrong={self.wrong}, no_answer={self.no_answer}"
            )

    @property
    def requires(self) -> tuple[Requirement, ...]:
        return label_requirements(self.labels)

    @property
    def turns(self) -> tuple[Turn, ...]:
        verdict = Turn(
            question=self.question,
            ask="balanced",
            samples=self.samples,
            limit=self.solutions,
            group="parent",
            reply="verdict",
        )
        return (Turn(), verdict)

    def __call__(self, episode: Sequence[Groups]) -> list[Reward]:
        return [
            self._reward(episode[0], agreement(episode, 0)),
            self._reward(episode[1], verdict_agreement(episode, 1)),
        ]

    def _reward(self, groups: Groups, is_right: Tensor) -> Reward:
        rewards = is_right.float()
        rewards = rewards.where(is_right | (groups.keys == 0), self.wrong)
        rewards = rewards.where(is_right | (groups.keys != 0), self.no_answer)
        return Reward(rewards=rewards, keep=keep_all(groups))
