"""Triton: answer keys -> majority, shares and rewards, one program per group of any size: a block of keys against each key."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import OPTIONS

BLOCK, WARPS = 256, 4


@triton.jit
def count(key_ptr, weight_ptr, key, start, stop, WEIGHTED: tl.constexpr, SILENCE: tl.constexpr):
    """-> the group's votes for each of `key`, the group's votes. Summed rollout after rollout, so that equal sums tie."""
    votes = tl.zeros(key.shape, tl.float64)
    total = tl.full((), 0.0, tl.float64)
    for at in range(start, stop):
        other = tl.load(key_ptr + at)
        weight = 1.0
        if WEIGHTED:
            weight = tl.load(weight_ptr + at).to(tl.float64)
        votes += tl.where(key == other, weight, 0.0)
        total += tl.where((other != 0) | SILENCE, weight, 0.0)
    return tl.where(key != 0, votes, 0.0), total


@triton.jit
def vote_kernel(
    key_ptr,
    weight_ptr,
    offset_ptr,
    majority_ptr,
    share_ptr,
    runner_up_ptr,
    reward_ptr,
    WEIGHTED: tl.constexpr,
    SILENCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0)
    start = tl.load(offset_ptr + group).to(tl.int64)
    stop = tl.load(offset_ptr + group + 1).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    majority = tl.full((), 0, tl.int64)
    top = tl.full((), 0.0, tl.float64)
    second = tl.full((), 0.0, tl.float64)
    total = tl.full((), 0.0, tl.float64)
    for begin in range(start, stop, BLOCK):
        at = begin + lanes
        key = tl.load(key_ptr + at, mask=at < stop, other=0)
        votes, total = count(key_ptr, weight_ptr, key, start, stop, WEIGHTED, SILENCE)
        most = tl.max(votes, 0)
        earliest = tl.min(tl.where(votes == most, at, stop), 0)
        leads = most > top
        majority = tl.where(leads, tl.sum(tl.where(at == earliest, key, 0), 0), majority)
        second = tl.where(leads, top, second)
        top = tl.maximum(top, most)
        second = tl.maximum(second, tl.max(tl.where(key == majority, 0.0, votes), 0))
    total = tl.where(total > 0, total, 1.0)
    tl.store(majority_ptr + group, majority)
    tl.store(share_ptr + group, (top / total).to(tl.float32))
    tl.store(runner_up_ptr + group, (second / total).to(tl.float32))
    for begin in range(start, stop, BLOCK):
        at = begin + lanes
        key = tl.load(key_ptr + at, mask=at < stop, other=0)
        tl.store(
            reward_ptr + at, tl.where((key == majority) & (key != 0), 1.0, 0.0), mask=at < stop
        )


def vote_by_comparing(
    keys: Tensor, cu_groups: Tensor, weights: Tensor | None, silence: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """majority [P] int64, share [P] fp32, runner_up [P] fp32, rewards [R] fp32. silence: its votes are in the divisor."""
    groups = len(cu_groups) - 1
    majority, rewards = keys.new_empty(groups), torch.empty_like(keys, dtype=torch.float32)
    share, runner_up = (keys.new_empty(groups, dtype=torch.float32) for _ in range(2))
    if groups:
        keys = keys.contiguous()
        vote_kernel[(groups,)](
            keys,
            keys if weights is None else weights.contiguous(),
            cu_groups.contiguous(),
            majority,
            share,
            runner_up,
            rewards,
            WEIGHTED=weights is not None,
            SILENCE=silence,
            BLOCK=BLOCK,
            num_warps=WARPS,
            **OPTIONS,
        )
    return majority, share, runner_up, rewards
