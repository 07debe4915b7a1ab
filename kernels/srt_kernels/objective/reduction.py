"""Reductions: what a loss is divided by, and the weight of each token."""

from __future__ import annotations

import torch
from torch import Tensor

from srt_kernels.objective.objective import Objective


def loss_normalizer(
    objective: Objective, cu_seqlens: Tensor, keep: Tensor | None = None
) -> Tensor | int:
    """What the loss of these rollouts is divided by, at least 1.

    The number of tokens with reduction "token", the number of rollouts with the other reductions.
    cu_seqlens [R+1] need not begin at 0. keep [R] bool: count only these rollouts (None: all).
    A tensor is 0-dim int64 or int32, on the device of cu_seqlens. Does not synchronise with the
    host.
    """
    if objective.reduction == "token":
        if keep is None:
            return (cu_seqlens[-1] - cu_seqlens[0]).clamp(min=1)
        return (cu_seqlens.diff() * keep).sum().clamp(min=1)
    if keep is None:
        return max(1, len(cu_seqlens) - 1)
    return keep.sum().clamp(min=1)


def token_weights(
    objective: Objective,
    cu_seqlens: Tensor,
    rollout_index: Tensor,
    normalizer: float | Tensor | None,
) -> Tensor:
    """[N] fp64: the reduction as a weight of each token. It depends on no other token of the call.

    rollout_index [N] int64: the rollout of each token. normalizer: None is loss_normalizer's.
    """
    if normalizer is None:
        normalizer = loss_normalizer(objective, cu_seqlens)
    ones = torch.ones(len(rollout_index), dtype=torch.float64, device=rollout_index.device)
    weights = ones / normalizer
    if objective.reduction == "sequence":
        return weights / cu_seqlens.diff()[rollout_index]
    if objective.reduction == "fixed":
        assert objective.max_length is not None
        return weights / objective.max_length
    return weights
