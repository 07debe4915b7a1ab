"""majority_vote: answer keys -> majority, vote share and reward, per group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_offsets, check_tensor, check_tensors, expect
from .segments import segment_ids, segment_reduce


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Worked example: keys [A, A, B, 0 | 0], cu_groups [0, 4, 5], share_over "all"."""

    majority: Tensor  # [P] int64, 0 where no rollout of the group has an answer: [A, 0]
    share: Tensor  # [P] fp32, the majority's part of the votes: [2/4, 0]
    runner_up: Tensor  # [P] fp32, the next answer's part: [1/4, 0]
    rewards: Tensor  # [R] fp32, 1 where the key is the group's majority: [1, 1, 0, 0 | 0]
    valid: Tensor  # [R] bool, the key is not 0: [T, T, T, F | F]


def _votes_per_key(keys: Tensor, group: Tensor, weights: Tensor) -> Tensor:
    """[R] fp64: the summed weights of the rollouts of the same group with the same key."""
    order = torch.argsort(keys, stable=True)
    order = order[torch.argsort(group[order], stable=True)]  # by group, then key, then rollout
    keys, group = keys[order], group[order]
    starts = torch.ones_like(keys, dtype=torch.bool)
    starts[1:] = (keys[1:] != keys[:-1]) | (group[1:] != group[:-1])
    run = starts.long().cumsum(0) - 1
    # At most one run per rollout, so [R+1] offsets hold them all: the runs that do not exist are empty, at the end.
    offsets = torch.searchsorted(run, torch.arange(len(keys) + 1, device=keys.device))
    votes = torch.empty_like(weights)
    votes[order] = segment_reduce(weights[order], "sum", offsets)[run]
    return votes


def majority_vote(keys: Tensor, cu_groups: Tensor, *, weights: Tensor | None = None, share_over: str = "all") -> Vote:
    """Vote of the rollouts of each group about its answer. No host sync off a CPU; the same on every run.

    keys [R] int64, 0 for "no answer", which neither wins nor earns; cu_groups [P+1] int32; weights [R], at least 0
    (None: one vote each). A tie goes to the answer whose earliest rollout comes first; an answer without any weight
    cannot win. share_over: "all" divides by the votes of the whole group, "valid" by those of rollouts with an answer.
    Raises ValueError for a bad shape, dtype, device, offset or share_over, and on a CPU for weights that are negative
    or not finite.
    """
    expect(share_over in ("all", "valid"), "share_over", "'all' or 'valid'", repr(share_over))
    check_tensors(keys=keys, cu_groups=cu_groups, weights=weights)
    check_tensor("keys", keys, (None,), (torch.int64,), keys.device)
    check_offsets("cu_groups", cu_groups, len(keys), keys.device)
    if weights is None:
        weights = torch.ones(len(keys), dtype=torch.float64, device=keys.device)
    check_tensor("weights", weights, (len(keys),), "float", keys.device)
    if weights.device.type == "cpu":
        expect(bool((weights.isfinite() & (weights >= 0)).all()), "weights", "finite, at least 0", weights.tolist())

    group, valid, weights = segment_ids(cu_groups, len(keys)), keys != 0, weights.double()
    votes = _votes_per_key(keys, group, weights).where(valid, 0.0)
    top = segment_reduce(votes, "max", cu_groups)
    index = torch.arange(len(keys), device=keys.device)
    leads = (votes == top[group]) & (votes > 0)
    none = len(keys)
    winner = segment_reduce(index.where(leads, none), "min", cu_groups, none).long()
    majority = torch.cat([keys, keys.new_zeros(1)])[winner]
    agrees = valid & (keys == majority[group])
    second = segment_reduce(votes.where(~agrees, 0.0), "max", cu_groups)
    total = segment_reduce(weights if share_over == "all" else weights.where(valid, 0.0), "sum", cu_groups)
    total = total.where(total > 0, 1.0)
    return Vote(
        majority=majority,
        share=(top / total).float(),
        runner_up=(second / total).float(),
        rewards=agrees.float(),
        valid=valid,
    )
