"""group_advantage: rewards -> advantages, per group."""

from __future__ import annotations

import torch
from torch import Tensor

from srt_kernels.core.backend import on_its_device, use_triton
from srt_kernels.core.checks import check_offsets, check_tensor, check_tensors, expect
from srt_kernels.core.segments import segment_ids, segment_reduce

KINDS = ("grpo", "mean", "rloo", "batch")
EPS = 1e-4  # added to a standard deviation, as in TRL


def _divided_by_rms(centred: Tensor, known: Tensor) -> Tensor:
    return centred / ((centred.double().square().sum() / known.sum().clamp(min=1)).sqrt() + EPS)


@torch.library.custom_op(
    "srt_kernels::group_advantage",
    mutates_args=(),
    schema="(Tensor rewards, Tensor cu_groups, str kind) -> Tensor",
)
@on_its_device
def _advantages(rewards: Tensor, cu_groups: Tensor, kind: str) -> Tensor:
    check_tensor("rewards", rewards, (None,), "float", rewards.device)
    check_offsets("cu_groups", cu_groups, len(rewards), rewards.device)
    known = ~rewards.isnan()
    if use_triton(rewards):
        from srt_kernels.groups.group_advantage_kernel import group_advantages

        centred = group_advantages(rewards, cu_groups, kind, EPS)
    else:
        centred = _centred(rewards, known, cu_groups, kind)
    centred = _divided_by_rms(centred, known) if kind == "batch" else centred
    return centred.to(torch.promote_types(rewards.dtype, torch.float32))


@_advantages.register_fake
def _(rewards, cu_groups, kind):
    return rewards.new_empty(rewards.shape, dtype=torch.promote_types(rewards.dtype, torch.float32))


def _centred(rewards: Tensor, known: Tensor, cu_groups: Tensor, kind: str) -> Tensor:
    """[R] fp64: what group_advantage_kernel.py computes."""
    group, values = segment_ids(cu_groups, len(rewards)), rewards.double().where(known, 0.0)
    count = segment_reduce(known, "sum", cu_groups)[group]
    highest = segment_reduce(values.where(known, -torch.inf), "max", cu_groups, -torch.inf)[group]
    lowest = segment_reduce(values.where(known, torch.inf), "min", cu_groups, torch.inf)[group]
    # The mean of equal rewards need not be that reward (3 x 0.1): compare the rewards themselves.
    counts = known & (highest > lowest)
    centred = values - segment_reduce(values, "sum", cu_groups)[group] / count.clamp(min=1)
    centred = centred.where(counts, 0.0)
    if kind == "grpo":
        variance = segment_reduce(centred.square(), "sum", cu_groups)[group] / (count - 1).clamp(
            min=1
        )
        return centred / (variance.sqrt() + EPS)
    return centred * count / (count - 1).clamp(min=1) if kind == "rloo" else centred


def group_advantage(rewards: Tensor, cu_groups: Tensor, *, kind: str) -> Tensor:
    """Advantages [R] (fp32, or fp64 for fp64 rewards) of rewards [R] in groups cu_groups [P+1]. No host sync off a CPU.

    grpo: (r - mean) / (std + 1e-4), std over n - 1 (arXiv 2402.03300, as in TRL). mean: r - mean (arXiv 2503.20783).
    rloo: r minus the mean of the others, n / (n - 1) (r - mean) (arXiv 2402.14740). batch: r - mean, divided by the
    root mean square of that over the batch + 1e-4 (REINFORCE++ baseline, arXiv 2501.03262).

    A NaN reward gets 0 and counts nowhere. Groups of one and groups of equal rewards get exact zeros.
    Example: rewards [1, 1, 0, 1, 1], cu_groups [0, 3, 5], kind "mean": [1/3, 1/3, -2/3, 0, 0].
    Raises ValueError for a bad shape, dtype, device, offset or kind.
    """
    expect(kind in KINDS, "kind", f"one of {', '.join(KINDS)}", repr(kind))
    check_tensors(rewards=rewards, cu_groups=cu_groups)
    return _advantages(rewards, cu_groups, kind)
