"""The votes on each prompt of a probe: of all of its samples, and of disjoint parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srt_fast.config.reward import ShareOver
from srt_kernels import majority_vote


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """The samples of one prompt, read."""

    keys: list[int]  # K answer keys, 0 for no answer
    majority: int  # key of the vote of all samples, 0 without any answer
    share: float  # the majority's share of the votes
    halves: tuple[int, int]  # the votes of the first and of the second K // 2 samples
    correct: list[bool] | None  # which samples are correct. None: no gold answer

    @property
    def is_clear(self) -> bool:
        """Whether both halves of the samples elect the same answer."""
        first, second = self.halves
        return first == second != 0

    def is_right(self, key: int) -> bool:
        """Whether an answer is correct. False for no answer (key 0)."""
        assert self.correct is not None
        return key != 0 and self.correct[self.keys.index(key)]


def count_votes(
    keys: Tensor, correct: Sequence[list[bool] | None], share_over: ShareOver
) -> list[Ballot]:
    """Vote on each prompt with all samples and with each half.

    keys [P, K] int64. correct: P lists of K, or None for a prompt without gold.
    """
    prompts, samples = keys.shape
    votes = majority_vote(keys.flatten(), _offsets(prompts, samples), share_over=share_over)
    halves = block_votes(keys, samples // 2)
    columns = zip(
        keys.tolist(), votes.majority.tolist(), votes.share.tolist(), halves, correct, strict=True
    )
    return [
        Ballot(
            keys=row, majority=majority, share=share, halves=(half[0], half[1]), correct=is_correct
        )
        for row, majority, share, half, is_correct in columns
    ]


def block_votes(keys: Tensor, size: int) -> list[list[int]]:
    """For each prompt, the votes of disjoint blocks of `size` samples. A rest is left out."""
    prompts, samples = keys.shape
    blocks = samples // size
    used = keys[:, : blocks * size].reshape(-1)
    return majority_vote(used, _offsets(prompts * blocks, size)).majority.view(prompts, -1).tolist()


def _offsets(prompts: int, samples: int) -> Tensor:
    return samples * torch.arange(prompts + 1, dtype=torch.int32)
