"""The model picks among its own answers, and the pick is the label: r_i = 1[a_i = pick].

SR-TTRL (Beyond Majority Voting, ICML 2026). One solution of each answer goes into one question. The
model says which is right. That answer is the pseudo-label, in place of the majority. Right answers
that are rare may win, if the model is better at judging than at solving. Reported: AIME24 29.1 to
55.8 for Qwen3-8B, 9.1 points above the vote. It is label-free in the source too.

Ours differs: `samples` picks vote, and a pick counts if it is one of the prompt's answers. Without
such a pick, and in prompts with one answer, the majority is the label. Picks do not train. The
source shortens the solutions first; here they are shown whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from srt_fast.rewards.base import Requirement, group_index, keep_all, label_agreement
from srt_fast.rewards.turns import Turn, prompt_index
from srt_fast.types import Groups, Reward
from srt_kernels import majority_vote

PICK = (
    "{prompt}\n\n{completion}\n\nCheck these solutions. Which one is correct? Answer with its "
    "final answer."
)


@dataclass(frozen=True, kw_only=True)
class Select:
    """`question`: text with {completion}, which stands for all solutions that are shown, and
    optionally {prompt} and {answer}. `samples`: picks of a prompt. `limit`: the most prompts of a
    step that are asked, 0 for all.
    """

    requires: ClassVar[tuple[Requirement, ...]] = ()

    question: str = PICK
    samples: int = 4
    limit: int = 0

    @property
    def turns(self) -> tuple[Turn, ...]:
        pick = Turn(
            question=self.question, ask="one_per_answer", samples=self.samples, limit=self.limit
        )
        return (Turn(), pick)

    def __call__(self, episode: Sequence[Groups]) -> list[Reward]:
        first, second = episode
        asked = prompt_index(episode, 1)
        is_of_prompt = asked[:, None] == group_index(first)
        is_shown = (is_of_prompt & (second.keys[:, None] == first.keys)).any(1)
        picks = majority_vote(second.keys.where(is_shown, 0), second.cu_groups).majority
        # A group of picks is a prompt's. Those without a pick that counts keep the majority.
        labels = first.vote.majority.clone()
        prompts = asked[second.cu_groups[:-1].long()]
        labels[prompts] = picks.where(picks != 0, labels[prompts])
        return [
            Reward(rewards=label_agreement(first, labels), keep=keep_all(first)),
            Reward(
                rewards=(second.keys == labels[asked]).float(),
                keep=torch.zeros_like(keep_all(second)),
            ),
        ]
