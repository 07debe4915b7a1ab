"""The data that flows through a step: types, and how batches of them are joined.

Worked example (used below): two prompts, three and two rollouts, completions of 2, 1, 3, 2 and 2 tokens, answers
A A B | C C. Then N = 10, cu_seqlens = [0, 2, 3, 6, 8, 10], cu_groups = [0, 3, 5], rewards = [1, 1, 0, 1, 1] and the
mean-centred advantages [1/3, 1/3, -2/3, 0, 0]: the second group is unanimous and never reaches the training pass.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One prompt of a task."""

    id: str  # "arithmetic/17": stable across runs
    prompt: str  # "740+580=" : the task's own text, before template and chat template
    gold: str | None = None  # "132": for metrics only, never for training (except feedback "oracle")
    row: object = None  # the task's own row, which its verifier may need


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Completions of P prompts, packed: R rollouts, N tokens, no padding. Rollouts of one prompt are neighbours."""

    tokens: Tensor  # [N] int64, completion tokens back to back, end-of-sequence token included
    cu_seqlens: Tensor  # [R+1] int32: [0, 2, 3, 6, 8, 10]
    cu_groups: Tensor  # [P+1] int32, in rollouts: [0, 3, 5]
    logprobs: Tensor  # [N] fp32, the sampler's log-prob of each token at its temperature
    cut: Tensor  # [R] bool, True where the completion hit max_new_tokens without an end-of-sequence token
    prompts: list[list[int]]  # P prompts' token ids


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A micro-batch for the training pass: prompt and completion of r rollouts packed into T tokens, n of them targets.

    With prompts of 3 tokens and the first group above: T = 5 + 4 + 6 = 15, n = 6.
    """

    input_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64: [0 1 2 3 4 | 0 1 2 3 | 0 1 2 3 4 5]
    cu_input: Tensor  # [r+1] int32, prompt and completion: [0, 5, 9, 15]
    row_index: Tensor  # [n] int64, the hidden row that predicts each target: [2 3 | 7 | 11 12 13]
    targets: Tensor  # [n] int64, completion tokens
    cu_seqlens: Tensor  # [r+1] int32, completions only: [0, 2, 3, 6]
    advantages: Tensor  # [r] fp32: [1/3, 1/3, -2/3]
    sampler_logprobs: Tensor  # [n] fp32
    rollout_index: Tensor  # [r] int64, which of the step's R rollouts these are: [0, 1, 2]
    token_index: Tensor  # [n] int64, which of the step's N tokens these are


def join(parts: list):
    """Dataclasses of one type, or tensors or lists, one behind the other. Offsets (fields named cu_...) go on where the part
    before ends. None where every part is None."""
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if not is_dataclass(first):
        return sum(parts, [])
    values = {field.name: [getattr(part, field.name) for part in parts] for field in fields(first)}
    return type(first)(**{name: _join_offsets(some) if name.startswith("cu_") and some[0] is not None else join(some)
                          for name, some in values.items()})


def _join_offsets(parts: list[Tensor]) -> Tensor:
    joined = parts[0]
    for offsets in parts[1:]:
        joined = torch.cat([joined, joined[-1] + offsets[1:]])
    return joined
