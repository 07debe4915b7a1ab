"""Rollouts to micro-batches: drop what has no gradient, order by length, fill a token budget."""

from __future__ import annotations

import torch
from torch import Tensor

from srt_fast.types import MicroBatch, Rollouts


def active_rollouts(
    advantages: Tensor, keep: Tensor, cu_seqlens: Tensor, *, every_row: bool
) -> Tensor:
    """Indices of the rollouts that the training pass needs.

    advantages [R]; keep [R] bool (False: masked out of the loss). A rollout with advantage 0 has no gradient, unless
    a KL or entropy term gives every token one (`every_row`).
    """
    wanted = keep & (cu_seqlens.diff() > 0)
    return (wanted if every_row else wanted & (advantages != 0)).nonzero()[:, 0]


def pack(
    rollouts: Rollouts, advantages: Tensor, indices: Tensor, token_budget: int
) -> list[MicroBatch]:
    """Micro-batches of at most `token_budget` tokens (prompt and completion), longest rollouts first.

    Longest first makes the first micro-batch the largest one: what does not fit in memory fails at once. A rollout
    longer than the budget gets a micro-batch of its own.
    """
    rows = _rows(rollouts, indices)
    rows.sort(key=lambda row: -row[2])
    batches, current, used = [], [], 0
    for row in rows:
        if current and used + row[2] > token_budget:
            batches.append(current)
            current, used = [], 0
        current.append(row)
        used += row[2]
    if current:
        batches.append(current)
    return [_pack_one(rollouts, advantages, batch) for batch in batches]


def count_tokens(rollouts: Rollouts, indices: Tensor) -> int:
    """Tokens, prompts included, that a training pass over these rollouts takes."""
    return sum(length for _, _, length in _rows(rollouts, indices))


def _rows(rollouts: Rollouts, indices: Tensor) -> list[tuple[int, int, int]]:
    """(rollout, its prompt, tokens of prompt and completion) of each index."""
    prompt_of = torch.bucketize(indices, rollouts.cu_groups[1:].long(), right=True).tolist()
    completion = rollouts.cu_seqlens.diff()[indices].tolist()
    return [
        (index, prompt, len(rollouts.prompts[prompt]) + length)
        for index, prompt, length in zip(indices.tolist(), prompt_of, completion, strict=True)
    ]


def _pack_one(
    rollouts: Rollouts, advantages: Tensor, rows: list[tuple[int, int, int]]
) -> MicroBatch:
    device = rollouts.tokens.device
    starts = rollouts.cu_seqlens.tolist()
    input_ids, positions, row_index, token_index = [], [], [], []
    cu_input, cu_seqlens = [0], [0]
    for index, prompt, length in rows:
        ids = rollouts.prompts[prompt]
        a, b = starts[index], starts[index + 1]
        input_ids += [torch.tensor(ids, device=device), rollouts.tokens[a:b]]
        positions.append(torch.arange(length, device=device))
        first = (
            cu_input[-1] + len(ids) - 1
        )  # the prompt's last token predicts the completion's first
        row_index.append(torch.arange(first, first + b - a, device=device))
        token_index.append(torch.arange(a, b, device=device))
        cu_input.append(cu_input[-1] + length)
        cu_seqlens.append(cu_seqlens[-1] + b - a)
    tokens = torch.cat(token_index)
    rollout_index = torch.tensor([row[0] for row in rows], device=device)
    return MicroBatch(
        input_ids=torch.cat(input_ids),
        position_ids=torch.cat(positions),
        row_index=torch.cat(row_index),
        cu_input=torch.tensor(cu_input, dtype=torch.int32, device=device),
        targets=rollouts.tokens[tokens],
        cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32, device=device),
        advantages=advantages[rollout_index],
        sampler_logprobs=rollouts.logprobs[tokens],
        rollout_index=rollout_index,
        token_index=tokens,
    )
