"""What a step's passes compute, read from the host side of its rollouts.

The one place that knows how rollouts are laid out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from srt_fast.packing.pieces import cut_groups
from srt_fast.types import Rollouts
from srt_fast.utilization.flops import SegmentLengths


class Sampling(NamedTuple):
    """The passes that sample rollouts."""

    prefill: SegmentLengths
    decoding: SegmentLengths
    steps: int  # passes of the decoding, with all rollouts in one batch: the longest one's


def packed_segments(
    rollouts: Rollouts, indices: Sequence[int], *, shares_prompts: bool
) -> SegmentLengths:
    """The packed passes over these rollouts, of all ranks together.

    With shares_prompts a group has its prompt once. A group that is cut computes more than this.
    """
    query_lengths: list[int] = []
    key_lengths: list[int] = []
    targets = 0
    for piece in cut_groups(rollouts, indices, sys.maxsize if shares_prompts else None):
        prompt = len(piece.prompt)
        is_alone = len(piece.inputs) == 1
        query_lengths.append(piece.tokens if is_alone else prompt)
        key_lengths.append(query_lengths[-1])
        if not is_alone:
            query_lengths += piece.inputs
            key_lengths += [prompt + count for count in piece.inputs]
        targets += sum(piece.inputs) + len(piece.inputs)
    return SegmentLengths(query_lengths, key_lengths, targets)


def sampling_passes(rollouts: Rollouts) -> Sampling:
    """Prefill of each prompt, which gives the first tokens, and one step a token more."""
    prompts = [len(prompt) for prompt in rollouts.prompts]
    decoded = [max(length - 1, 0) for length in rollouts.layout.lengths]
    groups = rollouts.layout.groups
    keys = [prompts[group] + length for group, length in zip(groups, decoded, strict=True)]
    return Sampling(
        prefill=SegmentLengths(prompts, prompts, len(prompts)),
        decoding=SegmentLengths(decoded, keys, sum(decoded)),
        steps=max(decoded, default=0),
    )
