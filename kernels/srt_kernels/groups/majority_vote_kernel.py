"""Triton: answer keys -> majority, shares and rewards, one program per group of any size.

A block of keys is compared with each key of the group.
"""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import LAUNCH_OPTIONS

BLOCK = 256
WARPS = 4


@triton.jit
def count_votes(
    key_ptr,
    weight_ptr,
    keys,
    start,
    stop,
    HAS_WEIGHTS: tl.constexpr,
    SHARE_OVER_ALL: tl.constexpr,
):
    """Return the group's votes for each of `keys`, and all votes that shares divide by.

    Summed rollout after rollout, so that equal sums tie.
    """
    votes = tl.zeros(keys.shape, tl.float64)
    all_votes = tl.full((), 0.0, tl.float64)
    for index in range(start, stop):
        key = tl.load(key_ptr + index)
        weight = 1.0
        if HAS_WEIGHTS:
            weight = tl.load(weight_ptr + index).to(tl.float64)
        votes += tl.where(keys == key, weight, 0.0)
        all_votes += tl.where((key != 0) | SHARE_OVER_ALL, weight, 0.0)
    return tl.where(keys != 0, votes, 0.0), all_votes


@triton.jit
def vote_kernel(
    # data
    key_ptr,
    weight_ptr,
    cu_groups_ptr,
    majority_ptr,
    share_ptr,
    runner_up_ptr,
    reward_ptr,
    # constants
    HAS_WEIGHTS: tl.constexpr,
    SHARE_OVER_ALL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0)
    start = tl.load(cu_groups_ptr + group).to(tl.int64)
    stop = tl.load(cu_groups_ptr + group + 1).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    majority = tl.full((), 0, tl.int64)
    most_votes = tl.full((), 0.0, tl.float64)
    second_votes = tl.full((), 0.0, tl.float64)
    all_votes = tl.full((), 0.0, tl.float64)
    for first in range(start, stop, BLOCK):
        index = first + lanes
        keys = tl.load(key_ptr + index, mask=index < stop, other=0)
        votes, all_votes = count_votes(
            key_ptr, weight_ptr, keys, start, stop, HAS_WEIGHTS, SHARE_OVER_ALL
        )
        if HAS_WEIGHTS:  # a rollout without weight does not decide a tie
            weights = tl.load(weight_ptr + index, mask=index < stop, other=0.0)
            votes = tl.where(weights.to(tl.float64) > 0, votes, 0.0)
        block_most = tl.max(votes, 0)
        earliest = tl.min(tl.where(votes == block_most, index, stop), 0)
        block_majority = tl.sum(tl.where(index == earliest, keys, 0), 0)
        is_leading = block_most > most_votes
        majority = tl.where(is_leading, block_majority, majority)
        second_votes = tl.where(is_leading, most_votes, second_votes)
        most_votes = tl.maximum(most_votes, block_most)
        block_second = tl.max(tl.where(keys == majority, 0.0, votes), 0)
        second_votes = tl.maximum(second_votes, block_second)
    all_votes = tl.where(all_votes > 0, all_votes, 1.0)
    tl.store(majority_ptr + group, majority)
    tl.store(share_ptr + group, (most_votes / all_votes).to(tl.float32))
    tl.store(runner_up_ptr + group, (second_votes / all_votes).to(tl.float32))
    for first in range(start, stop, BLOCK):
        index = first + lanes
        keys = tl.load(key_ptr + index, mask=index < stop, other=0)
        reward = tl.where((keys == majority) & (keys != 0), 1.0, 0.0)
        tl.store(reward_ptr + index, reward, mask=index < stop)


def vote_by_comparing(
    keys: Tensor, cu_groups: Tensor, weights: Tensor | None, share_over_all: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return majority [P] int64, share [P] fp32, runner_up [P] fp32 and rewards [R] fp32.

    share_over_all: rollouts without an answer count in what shares divide by.
    """
    groups = len(cu_groups) - 1
    majority = keys.new_empty(groups)
    share = torch.empty_like(majority, dtype=torch.float32)
    runner_up = torch.empty_like(share)
    rewards = torch.empty_like(keys, dtype=torch.float32)
    if groups:
        keys = keys.contiguous()
        vote_kernel[(groups,)](
            key_ptr=keys,
            weight_ptr=keys if weights is None else weights.contiguous(),
            cu_groups_ptr=cu_groups.contiguous(),
            majority_ptr=majority,
            share_ptr=share,
            runner_up_ptr=runner_up,
            reward_ptr=rewards,
            HAS_WEIGHTS=weights is not None,
            SHARE_OVER_ALL=share_over_all,
            BLOCK=BLOCK,
            num_warps=WARPS,
            **LAUNCH_OPTIONS,
        )
    return majority, share, runner_up, rewards
