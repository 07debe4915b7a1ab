"""The model writes problems like the task's, answers them, and trains on both.

R-Zero (arXiv 2508.05004), Self Rewarding Self Improving (2505.08827), SQLM (2508.03682).

    solve    r1 = 1[answer = label]
    propose  r2 = 1 - 2 |p - 1/2|, p the share of the majority among the answers to the problem
    answer   r3 = 1[answer = majority of the answers to this problem], if |p - 1/2| <= gate

A problem is worth most if half of its answers agree. Where nearly all agree it is too easy to teach
anything. Where few agree the majority is often wrong: R-Zero measures labels that get worse as the
problems get harder. So the gate is strict: answers to problems beyond it do not train. With the
gate of 1/4, p is from 1/4 to 3/4.

A problem that is truncated, empty, the task's own, or has the text of one before it in the same
sampling is not answered: its p is 0, and so is its reward. The same holds for one that is too long
for a prompt.

The sources' proposer and solver are two models that train in turns. Here one policy is both (SQLM
too), in one step. The sources' proposer is told a topic. Here it sees one of the task's prompts.
R-Zero pays for variety by clusters of BLEU. Here a repeated text has no reward. No gold answer
is used: `labels` is about the task's own prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srt_fast.rewards.base import Requirement, group_index, keep_all
from srt_fast.rewards.turns import LabelSource, Turn, agreement, label_requirements
from srt_fast.types import Groups, Reward

PROPOSE = (
    "Here is a problem:\n{prompt}\nWrite one new problem of the same kind that is a little harder. "
    "Write the problem only, without its solution."
)

ROUNDING = 1e-6
"""More than the rounding of a share and less than the distance between two shares."""


@dataclass(frozen=True, kw_only=True)
class Propose:
    """`question`: how a problem is asked for. {prompt} is one of the task's. `problems`: new ones
    for each of these. `limit`: the most prompts of a step that are shown, 0 for all. `samples`:
    answers to each new problem, at least 3. `gate`: how far p may be from 1/2. `labels`: of the
    task's own prompts: majority, ema, frozen or oracle.
    """

    question: str = PROPOSE
    problems: int = 4
    limit: int = 8
    samples: int = 8
    gate: float = 0.25
    labels: LabelSource = "majority"

    def __post_init__(self) -> None:
        if self.samples < 3:
            raise ValueError(f"reward.params: samples: expected at least 3, got {self.samples}")
        if not 0 <= self.gate <= 0.5:
            raise ValueError(f"reward.params: gate: expected from 0 to 0.5, got {self.gate}")

    @property
    def requires(self) -> tuple[Requirement, ...]:
        return label_requirements(self.labels)

    @property
    def turns(self) -> tuple[Turn, ...]:
        propose = Turn(
            question=self.question,
            ask="one_per_prompt",
            samples=self.problems,
            limit=self.limit,
            reply="problem",
        )
        answer = Turn(question="{completion}", ask="new", samples=self.samples, group="parent")
        return (Turn(), propose, answer)

    def __call__(self, episode: Sequence[Groups]) -> list[Reward]:
        first, second, third = episode
        distance = (third.vote.share - 0.5).abs()  # of each new problem that was answered
        is_kept = (distance <= self.gate + ROUNDING)[group_index(third)]
        return [
            Reward(rewards=agreement(episode, 0).float(), keep=keep_all(first)),
            Reward(rewards=_uncertainty(second, third, distance), keep=keep_all(second)),
            Reward(rewards=third.vote.rewards, keep=is_kept),
        ]


def _uncertainty(second: Groups, third: Groups, distance: Tensor) -> Tensor:
    """[R] fp32: the reward of each problem. 0 where it was not answered."""
    assert third.parent is not None
    problem = third.parent[third.cu_groups[:-1].long()]
    rewards = torch.zeros(len(second.keys), device=distance.device)
    return rewards.index_copy(0, problem, (1 - 2 * distance).float())
