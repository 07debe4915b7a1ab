"""Packs rollouts into micro-batches.

Drops rollouts without a gradient, orders the others by length, and fills a token budget.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from srt_fast.distributed.balance import split
from srt_fast.distributed.world import ONE_PROCESS, World
from srt_fast.types import MicroBatch, Rollouts


class _Sequence(NamedTuple):
    """A rollout with its prompt."""

    rollout: int  # place among the step's rollouts
    prompt: int  # place among the step's prompts
    length: int  # tokens of prompt and completion


def active_rollouts(
    advantages: Tensor, keep: Tensor, cu_seqlens: Tensor, *, every_row: bool
) -> Tensor:
    """[r] int64: the rollouts that the training pass needs.

    advantages [R]; keep [R] bool (False: masked out of the loss). A rollout with advantage 0 has no
    gradient, unless a KL or entropy term gives one to every token (`every_row`).
    """
    is_active = keep & (cu_seqlens.diff() > 0)
    if not every_row:
        is_active = is_active & (advantages != 0)
    return is_active.nonzero()[:, 0]


def pack(
    rollouts: Rollouts,
    advantages: Tensor,
    indices: Tensor,
    token_budget: int,
    world: World = ONE_PROCESS,
) -> list[MicroBatch]:
    """This rank's micro-batches, of at most `token_budget` tokens of prompts and completions.

    The longest rollouts come first. So the first micro-batch is the largest one, and a batch that
    does not fit in memory fails at once. A rollout longer than the budget gets a micro-batch alone.

    All ranks get equally many micro-batches. One without rollouts has a single token and no target.
    """
    sequences = _sequences(rollouts, indices)
    if world.is_distributed:
        lengths = [sequence.length for sequence in sequences]
        micro_batches = split(lengths, token_budget, world.size)[world.rank]
        batches = [[sequences[place] for place in places] for places in micro_batches]
    else:
        batches = _fill_in_order(sequences, token_budget)
    return [
        _pack_one(rollouts, advantages, batch) if batch else _empty(rollouts.tokens.device)
        for batch in batches
    ]


def count_tokens(rollouts: Rollouts, indices: Tensor) -> int:
    """Tokens of a training pass over these rollouts, prompts included."""
    return sum(sequence.length for sequence in _sequences(rollouts, indices))


def _fill_in_order(sequences: list[_Sequence], token_budget: int) -> list[list[_Sequence]]:
    """Micro-batches of one process: longest first, each filled up to the budget."""
    batches: list[list[_Sequence]] = []
    batch_tokens = 0
    for sequence in sorted(sequences, key=lambda sequence: -sequence.length):
        if not batches or batch_tokens + sequence.length > token_budget:
            batches.append([])
            batch_tokens = 0
        batches[-1].append(sequence)
        batch_tokens += sequence.length
    return batches


def _sequences(rollouts: Rollouts, indices: Tensor) -> list[_Sequence]:
    prompt_index = torch.bucketize(indices, rollouts.cu_groups[1:].long(), right=True).tolist()
    completion_lengths = rollouts.cu_seqlens.diff()[indices].tolist()
    sequences = []
    for place, rollout in enumerate(indices.tolist()):
        prompt = prompt_index[place]
        length = len(rollouts.prompts[prompt]) + completion_lengths[place]
        sequences.append(_Sequence(rollout, prompt, length))
    return sequences


def _pack_one(rollouts: Rollouts, advantages: Tensor, sequences: list[_Sequence]) -> MicroBatch:
    device = rollouts.tokens.device
    offsets = rollouts.cu_seqlens.tolist()
    input_ids = []
    position_ids = []
    row_index = []
    token_index = []
    cu_input = [0]
    cu_seqlens = [0]
    for sequence in sequences:
        prompt = rollouts.prompts[sequence.prompt]
        first = offsets[sequence.rollout]
        last = offsets[sequence.rollout + 1]
        input_ids.append(torch.tensor(prompt, device=device))
        input_ids.append(rollouts.tokens[first:last])
        position_ids.append(torch.arange(sequence.length, device=device))
        # The prompt's last token predicts the completion's first.
        first_row = cu_input[-1] + len(prompt) - 1
        row_index.append(torch.arange(first_row, first_row + last - first, device=device))
        token_index.append(torch.arange(first, last, device=device))
        cu_input.append(cu_input[-1] + sequence.length)
        cu_seqlens.append(cu_seqlens[-1] + last - first)
    tokens = torch.cat(token_index)
    rollout_index = torch.tensor([sequence.rollout for sequence in sequences], device=device)
    return MicroBatch(
        input_ids=torch.cat(input_ids),
        position_ids=torch.cat(position_ids),
        cu_input=torch.tensor(cu_input, dtype=torch.int32, device=device),
        row_index=torch.cat(row_index),
        targets=rollouts.tokens[tokens],
        cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32, device=device),
        advantages=advantages[rollout_index],
        sampler_logprobs=rollouts.logprobs[tokens],
        rollout_index=rollout_index,
        token_index=tokens,
    )


def _empty(device: torch.device) -> MicroBatch:
    """A micro-batch of one token that is no target: a rank takes part in a pass without work."""
    no_place = torch.zeros(0, dtype=torch.int64, device=device)
    return MicroBatch(
        input_ids=torch.zeros(1, dtype=torch.int64, device=device),
        position_ids=torch.zeros(1, dtype=torch.int64, device=device),
        cu_input=torch.tensor([0, 1], dtype=torch.int32, device=device),
        row_index=no_place,
        targets=no_place,
        cu_seqlens=torch.zeros(2, dtype=torch.int32, device=device),
        advantages=torch.zeros(1, device=device),
        sampler_logprobs=torch.zeros(0, device=device),
        rollout_index=torch.zeros(1, dtype=torch.int64, device=device),
        token_index=no_place,
    )
