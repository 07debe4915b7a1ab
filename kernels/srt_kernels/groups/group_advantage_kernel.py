"""Triton: rewards -> advantages, one program per group of any size. Sums in fp64; lanes keep their own, then a tree."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import OPTIONS

BLOCK, WARPS = 128, 1


@triton.jit
def load_group(reward_ptr, at, stop):
    """-> rewards in fp64, 0 where there is none or NaN; which are known."""
    reward = tl.load(reward_ptr + at, mask=at < stop, other=float("nan")).to(tl.float64)
    known = reward == reward
    return tl.where(known, reward, 0.0), known


@triton.jit
def group_kernel(
    reward_ptr, offset_ptr, advantage_ptr, eps, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    start = tl.load(offset_ptr + tl.program_id(0)).to(tl.int64)
    stop = tl.load(offset_ptr + tl.program_id(0) + 1).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    count = tl.zeros((BLOCK,), tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    highest = tl.full((BLOCK,), float("-inf"), tl.float64)
    lowest = tl.full((BLOCK,), float("inf"), tl.float64)
    for first in range(start, stop, BLOCK):
        reward, known = load_group(reward_ptr, first + lanes, stop)
        count += tl.where(known, 1.0, 0.0)
        total += reward
        highest = tl.maximum(highest, tl.where(known, reward, float("-inf")))
        lowest = tl.minimum(lowest, tl.where(known, reward, float("inf")))
    n = tl.sum(count, 0)
    mean = tl.sum(total, 0) / tl.maximum(n, 1.0)
    # The mean of equal rewards need not be that reward (3 x 0.1): compare the rewards themselves.
    differ = tl.max(highest, 0) > tl.min(lowest, 0)
    scale = n * 0 + 1
    if KIND == "rloo":
        scale = n / tl.maximum(n - 1, 1.0)
    if KIND == "grpo":
        squares = tl.zeros((BLOCK,), tl.float64)
        for first in range(start, stop, BLOCK):
            reward, known = load_group(reward_ptr, first + lanes, stop)
            squares += tl.where(known, (reward - mean) * (reward - mean), 0.0)
        scale = 1 / (tl.sqrt(tl.sum(squares, 0) / tl.maximum(n - 1, 1.0)) + eps)
    scale = tl.where(differ, scale, 0.0)
    for first in range(start, stop, BLOCK):
        reward, known = load_group(reward_ptr, first + lanes, stop)
        advantage = tl.where(known, (reward - mean) * scale, 0.0)
        tl.store(advantage_ptr + first + lanes, advantage.to(tl.float32), mask=first + lanes < stop)


def group_advantages(rewards: Tensor, cu_groups: Tensor, kind: str, eps: float) -> Tensor:
    """[R] fp32; for kind "batch" before it is divided by the batch's root mean square."""
    advantages = torch.empty_like(rewards, dtype=torch.float32)
    groups = len(cu_groups) - 1
    if groups and len(rewards):
        group_kernel[(groups,)](
            rewards.contiguous(),
            cu_groups.contiguous(),
            advantages,
            eps,
            KIND=kind,
            BLOCK=BLOCK,
            num_warps=WARPS,
            **OPTIONS,
        )
    return advantages
