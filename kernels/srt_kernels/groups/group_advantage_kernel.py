"""Triton: rewards -> advantages, one program per group of any size.

Sums are in fp64: each lane has its own, which a tree combines.
"""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import LAUNCH_OPTIONS

BLOCK = 128
WARPS = 1


@triton.jit
def load_rewards(reward_ptr, index, stop):
    """Return rewards in fp64 (0 if outside or NaN) and whether they are known."""
    reward = tl.load(reward_ptr + index, mask=index < stop, other=float("nan")).to(tl.float64)
    is_known = reward == reward
    return tl.where(is_known, reward, 0.0), is_known


@triton.jit
def group_kernel(
    # data
    reward_ptr,
    cu_groups_ptr,
    advantage_ptr,
    # constants
    eps,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.load(cu_groups_ptr + tl.program_id(0)).to(tl.int64)
    stop = tl.load(cu_groups_ptr + tl.program_id(0) + 1).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    lane_count = tl.zeros((BLOCK,), tl.float64)
    lane_sum = tl.zeros((BLOCK,), tl.float64)
    highest = tl.full((BLOCK,), float("-inf"), tl.float64)
    lowest = tl.full((BLOCK,), float("inf"), tl.float64)
    for first in range(start, stop, BLOCK):
        reward, is_known = load_rewards(reward_ptr, first + lanes, stop)
        lane_count += tl.where(is_known, 1.0, 0.0)
        lane_sum += reward
        highest = tl.maximum(highest, tl.where(is_known, reward, float("-inf")))
        lowest = tl.minimum(lowest, tl.where(is_known, reward, float("inf")))
    count = tl.sum(lane_count, 0)
    mean = tl.sum(lane_sum, 0) / tl.maximum(count, 1.0)
    # The rewards are compared, because the mean of equal rewards need not be that reward (3 x 0.1).
    has_gradient = tl.max(highest, 0) > tl.min(lowest, 0)
    scale = count * 0 + 1
    if KIND == "rloo":
        scale = count / tl.maximum(count - 1, 1.0)
    if KIND == "grpo":
        lane_squares = tl.zeros((BLOCK,), tl.float64)
        for first in range(start, stop, BLOCK):
            reward, is_known = load_rewards(reward_ptr, first + lanes, stop)
            lane_squares += tl.where(is_known, (reward - mean) * (reward - mean), 0.0)
        variance = tl.sum(lane_squares, 0) / tl.maximum(count - 1, 1.0)
        scale = 1 / (tl.sqrt(variance) + eps)
    scale = tl.where(has_gradient, scale, 0.0)
    for first in range(start, stop, BLOCK):
        index = first + lanes
        reward, is_known = load_rewards(reward_ptr, index, stop)
        advantage = tl.where(is_known, (reward - mean) * scale, 0.0)
        tl.store(advantage_ptr + index, advantage.to(tl.float32), mask=index < stop)


def group_advantages(rewards: Tensor, cu_groups: Tensor, kind: str, eps: float) -> Tensor:
    """[R] fp32 advantages. Those of kind "batch" are not yet divided by their root mean square."""
    advantages = torch.empty_like(rewards, dtype=torch.float32)
    groups = len(cu_groups) - 1
    if groups and len(rewards):
        group_kernel[(groups,)](
            reward_ptr=rewards.contiguous(),
            cu_groups_ptr=cu_groups.contiguous(),
            advantage_ptr=advantages,
            eps=eps,
            KIND=kind,
            BLOCK=BLOCK,
            num_warps=WARPS,
            **LAUNCH_OPTIONS,
        )
    return advantages
