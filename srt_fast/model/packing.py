"""Packs rollouts into micro-batches.

Drops rollouts without a gradient, orders the others by length, and fills a token budget. All of it
is planned on the host. A micro-batch's places go to the device in one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from srt_fast.distributed.balance import split
from srt_fast.distributed.world import ONE_PROCESS, World
from srt_fast.transfer import fetch, send
from srt_fast.types import MicroBatch, Rollouts


class _Sequence(NamedTuple):
    """A rollout with its prompt."""

    rollout: int  # place among the step's rollouts
    prompt: list[int]  # token ids
    length: int  # tokens of prompt and completion


class Selection(NamedTuple):
    """Which of a step's R rollouts train."""

    kept: list[bool]  # R, False: masked out of the loss
    active: list[int]  # the rollouts that the training pass needs


def select_rollouts(
    rollouts: Rollouts, advantages: Tensor, keep: Tensor, *, every_row: bool
) -> Selection:
    """The rollouts that train. One host sync.

    advantages [R]; keep [R] bool (False: masked out of the loss). A rollout with advantage 0 has no
    gradient, unless a KL or entropy term gives one to every token (`every_row`).
    """
    is_active = keep if every_row else keep & (advantages != 0)
    [flags] = fetch(torch.stack([keep, is_active]))
    kept, are_active = flags.tolist()
    places = enumerate(zip(are_active, rollouts.layout.lengths, strict=True))
    return Selection(kept, [place for place, (is_on, length) in places if is_on and length])


def pack(
    rollouts: Rollouts,
    advantages: Tensor,
    indices: Sequence[int],
    token_budget: int,
    world: World = ONE_PROCESS,
) -> list[MicroBatch]:
    """This rank's micro-batches, of at most `token_budget` tokens of prompts and completions.

    advantages [R]. indices: the rollouts that are packed. Does not synchronise with the device.

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
    offsets = torch.tensor(rollouts.layout.offsets)
    return [
        _pack_one(rollouts, advantages, batch, offsets) if batch else _empty(rollouts.tokens.device)
        for batch in batches
    ]


def count_tokens(rollouts: Rollouts, indices: Sequence[int]) -> int:
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


def _sequences(rollouts: Rollouts, indices: Sequence[int]) -> list[_Sequence]:
    groups = rollouts.layout.groups
    lengths = rollouts.layout.lengths
    sequences = []
    for rollout in indices:
        prompt = rollouts.prompts[groups[rollout]]
        sequences.append(_Sequence(rollout, prompt, len(prompt) + lengths[rollout]))
    return sequences


def _pack_one(
    rollouts: Rollouts, advantages: Tensor, sequences: list[_Sequence], offsets: Tensor
) -> MicroBatch:
    """offsets [R+1] int64: where each completion begins, on the host."""
    device = rollouts.tokens.device
    rollout_index = torch.tensor([sequence.rollout for sequence in sequences])
    lengths = torch.tensor([sequence.length for sequence in sequences])
    prompt_lengths = torch.tensor([len(sequence.prompt) for sequence in sequences])
    completion_lengths = lengths - prompt_lengths
    cu_input = _offsets(lengths)
    starts = cu_input[:-1]
    input_ids = torch.zeros(sum(sequence.length for sequence in sequences), dtype=torch.int64)
    prompt_tokens = chain.from_iterable(sequence.prompt for sequence in sequences)
    input_ids[_ranges(starts, prompt_lengths)] = torch.tensor(list(prompt_tokens))
    parts = [
        input_ids,
        _ranges(torch.zeros_like(lengths), lengths),
        # The prompt's last token predicts the completion's first.
        _ranges(starts + prompt_lengths - 1, completion_lengths),
        _ranges(offsets[rollout_index], completion_lengths),
        rollout_index,
        cu_input.int(),
        _offsets(completion_lengths).int(),
    ]
    input_ids, position_ids, row_index, tokens, rollout_index, cu_input, cu_seqlens = send(
        parts, device
    )
    targets = rollouts.tokens[tokens]
    return MicroBatch(
        input_ids=input_ids.index_copy(0, row_index + 1, targets),
        position_ids=position_ids,
        cu_input=cu_input,
        max_length=max(sequence.length for sequence in sequences),
        row_index=row_index,
        targets=targets,
        cu_seqlens=cu_seqlens,
        advantages=advantages[rollout_index],
        sampler_logprobs=rollouts.logprobs[tokens],
        rollout_index=rollout_index,
        token_index=tokens,
    )


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """[sum of lengths] int64: start, start + 1, ... of each range, one range after the other."""
    places_before = lengths.cumsum(0) - lengths
    shifts = torch.repeat_interleave(starts - places_before, lengths)
    return torch.arange(len(shifts)) + shifts


def _offsets(lengths: Tensor) -> Tensor:
    """[n+1] int64: where each of n parts begins."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _empty(device: torch.device) -> MicroBatch:
    """A micro-batch of one token that is no target: a rank takes part in a pass without work."""
    no_place = torch.zeros(0, dtype=torch.int64, device=device)
    return MicroBatch(
        input_ids=torch.zeros(1, dtype=torch.int64, device=device),
        position_ids=torch.zeros(1, dtype=torch.int64, device=device),
        cu_input=torch.arange(2, dtype=torch.int32, device=device),
        max_length=1,
        row_index=no_place,
        targets=no_place,
        cu_seqlens=torch.zeros(2, dtype=torch.int32, device=device),
        advantages=torch.zeros(1, device=device),
        sampler_logprobs=torch.zeros(0, device=device),
        rollout_index=torch.zeros(1, dtype=torch.int64, device=device),
        token_index=no_place,
    )
