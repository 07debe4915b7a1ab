"""group_advantage: rewards -> advantages, per group."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from srt_kernels.core.backend import on_device_of_tensors, use_triton
from srt_kernels.core.checks import (
    check_offsets,
    check_tensor,
    check_tensors,
    check_values_on_cpu,
    expect,
)
from srt_kernels.core.segments import segment_ids, segment_reduce

AdvantageKind = Literal["grpo", "mean", "rloo", "batch"]
KINDS: tuple[str, ...] = get_args(AdvantageKind)
EPS = 1e-4  # added to a standard deviation, as in TRL


def _group_advantages_torch(
    rewards: Tensor, is_known: Tensor, cu_groups: Tensor, kind: str
) -> Tensor:
    """[R] fp64: the twin of group_advantages in group_advantage_kernel.py."""
    group = segment_ids(cu_groups, len(rewards))
    values = rewards.double().where(is_known, 0.0)
    count = segment_reduce(is_known, "sum", cu_groups)[group]
    candidates = values.where(is_known, -torch.inf)
    highest = segment_reduce(candidates, "max", cu_groups, -torch.inf)[group]
    candidates = values.where(is_known, torch.inf)
    lowest = segment_reduce(candidates, "min", cu_groups, torch.inf)[group]
    # The rewards are compared, because the mean of equal rewards need not be that reward (3 x 0.1).
    has_gradient = is_known & (highest > lowest)
    mean = segment_reduce(values, "sum", cu_groups)[group] / count.clamp(min=1)
    centred = (values - mean).where(has_gradient, 0.0)
    if kind == "grpo":
        squares = segment_reduce(centred.square(), "sum", cu_groups)[group]
        variance = squares / (count - 1).clamp(min=1)
        return centred / (variance.sqrt() + EPS)
    if kind == "rloo":
        return centred * count / (count - 1).clamp(min=1)
    return centred


def _divide_by_rms(centred: Tensor, is_known: Tensor) -> Tensor:
    mean_square = centred.double().square().sum() / is_known.sum().clamp(min=1)
    return centred / (mean_square.sqrt() + EPS)


@torch.library.custom_op(
    "srt_kernels::group_advantage",
    mutates_args=(),
    schema="(Tensor rewards, Tensor cu_groups, str kind) -> Tensor",
)
@on_device_of_tensors
def _forward(rewards: Tensor, cu_groups: Tensor, kind: str) -> Tensor:
    check_tensor("rewards", rewards, (None,), "float", rewards.device)
    check_offsets("cu_groups", cu_groups, len(rewards), rewards.device)
    is_known = ~rewards.isnan()
    check_values_on_cpu("rewards", ~rewards.isinf(), rewards, "finite values or nan")
    if use_triton(rewards):
        # Imported here because Triton is optional.
        from srt_kernels.groups.group_advantage_kernel import group_advantages

        advantages = group_advantages(rewards, cu_groups, kind, EPS)
    else:
        advantages = _group_advantages_torch(rewards, is_known, cu_groups, kind)
    if kind == "batch":
        advantages = _divide_by_rms(advantages, is_known)
    return advantages.to(torch.promote_types(rewards.dtype, torch.float32))


@_forward.register_fake
def _fake_forward(rewards: Tensor, cu_groups: Tensor, kind: str) -> Tensor:
    return rewards.new_empty(rewards.shape, dtype=torch.promote_types(rewards.dtype, torch.float32))


def group_advantage(rewards: Tensor, cu_groups: Tensor, *, kind: AdvantageKind) -> Tensor:
    """Advantages of rewards in groups.

    Synchronises with the host only for CPU tensors. A NaN reward has advantage 0 and is not
    counted. Groups of one and groups of equal rewards have exact zeros. Example: rewards [1, 1, 0,
    1, 1], cu_groups [0, 3, 5], kind "mean": [1/3, 1/3, -2/3, 0, 0].

    Args:
        rewards: [R] fp16, bf16, fp32 or fp64.
        cu_groups: [P+1] int32 or int64.
        kind: the formula.
            grpo: (r - mean) / (std + 1e-4), std over n - 1 (arXiv 2402.03300, as in TRL).
            mean: r - mean (arXiv 2503.20783).
            rloo: r minus the mean of the others: n / (n - 1) (r - mean) (arXiv 2402.14740).
            batch: r - mean, divided by its root mean square over the batch + 1e-4 (REINFORCE++
            baseline, arXiv 2501.03262).

    Returns:
        [R] fp32, or fp64 for fp64 rewards.

    Raises:
        ValueError: a bad shape, dtype, device, offset or kind; on a CPU also an infinite reward. On
            a GPU it makes nan advantages in its group, which linear_policy_loss refuses.
    """
    expect(kind in KINDS, "kind", f"one of {', '.join(KINDS)}", repr(kind))
    check_tensors(rewards=rewards, cu_groups=cu_groups)
    return _forward(rewards, cu_groups, kind)
