"""What a step's passes compute, read from the host side of its rollouts.

The one place that knows how rollouts are laid out. Today each rollout has its prompt for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from srt_fast.types import Rollouts
from srt_fast.utilization.flops import Segments


class Sampling(NamedTuple):
    """The passes that sample rollouts."""

    prefill: Segments
    decoding: Segments
    steps: int  # passes of the decoding, with all rollouts in one batch: the longest one's


def packed_segments(rollouts: Rollouts, indices: Sequence[int]) -> Segments:
    """The packed passes over these rollouts, of all ranks together."""
    prompts = _prompt_lengths(rollouts)
    completions = rollouts.layout.lengths
    lengths = [prompts[index] + completions[index] for index in indices]
    return Segments(lengths, lengths, sum(completions[index] for index in indices))


def sampling_passes(rollouts: Rollouts) -> Sampling:
    """Prefill of each rollout's prompt, which gives its first token, and one step a token more.

    A sampler that caches the prompts of a group computes less than this.
    """
    prompts = _prompt_lengths(rollouts)
    decoded = [max(length - 1, 0) for length in rollouts.layout.lengths]
    keys = [prompt + length for prompt, length in zip(prompts, decoded, strict=True)]
    return Sampling(
        prefill=Segments(prompts, prompts, len(prompts)),
        decoding=Segments(decoded, keys, sum(decoded)),
        steps=max(decoded, default=0),
    )


def _prompt_lengths(rollouts: Rollouts) -> list[int]:
    """R, tokens of each rollout's prompt."""
    return [len(rollouts.prompts[group]) for group in rollouts.layout.groups]
