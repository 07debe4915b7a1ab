"""Generator and verifier in one model: vote, verify, keep what the verifier trusts, redo the rest.

CoVerRL (arXiv 2603.17775). The label is a vote. In each prompt with a dissenter the solutions that
agree are verified once each (a single one twice), and one with the rarest other answer as often.

    solve    r = 1[answer = label]
    verify   r = 1[verdict = 1[answer = label]], with one baseline for an answer to a prompt
    redo     r = 1[answer = label], for each solution that a verdict rejects, `redo` times

A prompt is kept only if, on the solutions that agree with the label, more verdicts are "correct"
than not. Otherwise none of its turns trains. So the verifier takes out votes that it does not
believe, and the votes teach the verifier. Reported: MATH-500 ends at 71.9, TTRL at 65.0
(Qwen3-1.7B-Base). It is label-free in the source too.

Ours differs: a verdict is 1 or 0 in the task's answer format, where the source reads a sentence.
There is no reward for the format. A prompt without verdicts is left out, where the source keeps it.
An unanimous prompt has none, and no gradient either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from srt_fast.rewards.base import QUESTION, Requirement, sums_by
from srt_fast.rewards.turns import (
    CORRECT,
    LabelSource,
    Turn,
    agreement,
    label_requirements,
    prompt_index,
    verdict_agreement,
)
from srt_fast.types import Groups, Reward

REDO = "\nYou indicated that the solution above is wrong. Solve the problem again.\n"
"""What a policy is asked behind its own verdict. The conversation has the solution too."""


@dataclass(frozen=True, kw_only=True)
class Coverl:
    """`question`: as of self_judge. `again`: the question behind a rejection. `redo`: new solutions
    of a rejection, 0 for none. `limit`: the most verdicts of a step, 0 for no limit. `labels`:
    majority, ema, frozen or oracle.
    """

    question: str = QUESTION
    again: str = REDO
    redo: int = 2
    limit: int = 0
    labels: LabelSource = "majority"

    def __post_init__(self) -> None:
        if self.redo < 0:
            raise ValueError(f"reward.params: redo: expected at least 0, got {self.redo}")

    @property
    def requires(self) -> tuple[Requirement, ...]:
        return label_requirements(self.labels)

    @property
    def turns(self) -> tuple[Turn, ...]:
        verdict = Turn(
            question=self.question,
            ask="balanced",
            limit=self.limit,
            group="answer",
            reply="verdict",
        )
        again = Turn(question=self.again, ask="rejected", samples=self.redo or 1, group="parent")
        return (Turn(), verdict, again) if self.redo else (Turn(), verdict)

    def __call__(self, episode: Sequence[Groups]) -> list[Reward]:
        is_trusted = self._trusted_prompts(episode)
        is_right = [agreement(episode, 0), verdict_agreement(episode, 1)]
        is_right += [agreement(episode, turn) for turn in range(2, len(episode))]
        return [
            Reward(rewards=right.float(), keep=is_trusted[prompt_index(episode, turn)])
            for turn, right in enumerate(is_right)
        ]

    def _trusted_prompts(self, episode: Sequence[Groups]) -> Tensor:
        """[P] bool: "correct" outweighs "wrong" on the solutions that agree with the label."""
        parent = episode[1].parent
        assert parent is not None
        says_correct = (episode[1].keys == CORRECT).long()
        vote = (2 * says_correct - 1).where(agreement(episode, 0)[parent], 0)
        prompts = len(episode[0].cu_groups) - 1
        return sums_by(prompt_index(episode, 1), vote, prompts) > 0
