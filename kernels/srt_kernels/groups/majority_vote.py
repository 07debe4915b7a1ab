"""majority_vote: answer keys -> majority, vote share and reward, per group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srt_kernels.core.backend import on_its_device, use_triton
from srt_kernels.core.checks import check_offsets, check_tensor, check_tensors, expect
from srt_kernels.core.segments import segment_ids, segment_reduce

SORT_ABOVE = 1024  # rollouts in a group on average: up to here a GPU compares each with each; a CPU always sorts


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Worked example: keys [A, A, B, 0 | 0], cu_groups [0, 4, 5], share_over "all"."""

    majority: Tensor  # [P] int64, 0 where no rollout of the group has an answer: [A, 0]
    share: Tensor  # [P] fp32, the majority's part of the votes: [2/4, 0]
    runner_up: Tensor  # [P] fp32, the next answer's part: [1/4, 0]
    rewards: Tensor  # [R] fp32, 1 where the key is the group's majority: [1, 1, 0, 0 | 0]
    valid: Tensor  # [R] bool, the key is not 0: [T, T, T, F | F]


def _sums(values: Tensor, offsets: Tensor) -> Tensor:
    """[R] -> [S] fp64, each sum in order. Of a column: a GPU sums a vector as a tree, and what ties here might not there."""
    return segment_reduce(values[:, None], "sum", offsets)[:, 0]


def votes_per_key(keys: Tensor, group: Tensor, weights: Tensor) -> Tensor:
    """[R] fp64: the summed weights of the rollouts of the same group with the same key (0 is a key like any other).

    keys [R] int64; group [R] int64, ascending; weights [R] fp64, summed in the rollouts' order. No host sync.
    """
    order = torch.argsort(keys, stable=True)
    order = order[torch.argsort(group[order], stable=True)]  # by group, then key, then rollout
    keys, group = keys[order], group[order]
    starts = torch.ones_like(keys, dtype=torch.bool)
    starts[1:] = (keys[1:] != keys[:-1]) | (group[1:] != group[:-1])
    run = starts.long().cumsum(0) - 1
    # At most one run per rollout, so [R+1] offsets hold them all: the runs that do not exist are empty, at the end.
    offsets = torch.searchsorted(run, torch.arange(len(keys) + 1, device=keys.device))
    votes = torch.empty_like(weights)
    votes[order] = _sums(weights[order], offsets)[run]
    return votes


def vote_by_sorting(
    keys: Tensor, cu_groups: Tensor, weights: Tensor | None, silence: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What majority_vote_kernel.py computes, the same bits, in O(R log R)."""
    group, valid = segment_ids(cu_groups, len(keys)), keys != 0
    weights = torch.ones_like(keys, dtype=torch.float64) if weights is None else weights.double()
    votes = votes_per_key(keys, group, weights).where(valid, 0.0)
    top = segment_reduce(votes, "max", cu_groups)
    index = torch.arange(len(keys), device=keys.device)
    leads = (votes == top[group]) & (votes > 0)
    none = len(keys)
    winner = segment_reduce(index.where(leads, none), "min", cu_groups, none).long()
    majority = torch.cat([keys, keys.new_zeros(1)])[winner]
    agrees = valid & (keys == majority[group])
    second = segment_reduce(votes.where(~agrees, 0.0), "max", cu_groups)
    total = _sums(weights if silence else weights.where(valid, 0.0), cu_groups)
    total = total.where(total > 0, 1.0)
    return majority, (top / total).float(), (second / total).float(), agrees.float()


@torch.library.custom_op(
    "srt_kernels::majority_vote",
    mutates_args=(),
    schema="(Tensor keys, Tensor cu_groups, Tensor? weights, bool silence) -> (Tensor, Tensor, Tensor, Tensor)",
)
@on_its_device
def _vote(
    keys: Tensor, cu_groups: Tensor, weights: Tensor | None, silence: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_tensor("keys", keys, (None,), (torch.int64,), keys.device)
    check_offsets("cu_groups", cu_groups, len(keys), keys.device)
    if weights is not None:
        check_tensor("weights", weights, (len(keys),), "float", keys.device)
        if weights.device.type == "cpu":
            expect(
                bool((weights.isfinite() & (weights >= 0)).all()),
                "weights",
                "finite, at least 0",
                weights.tolist(),
            )
    if use_triton(keys) and len(keys) <= SORT_ABOVE * (len(cu_groups) - 1):
        from srt_kernels.groups.majority_vote_kernel import vote_by_comparing

        return vote_by_comparing(keys, cu_groups, weights, silence)
    return vote_by_sorting(keys, cu_groups, weights, silence)


@_vote.register_fake
def _(keys, cu_groups, weights, silence):
    groups = cu_groups.shape[0] - 1
    share, runner_up = (keys.new_empty(groups, dtype=torch.float32) for _ in range(2))
    return keys.new_empty(groups), share, runner_up, keys.new_empty(keys.shape, dtype=torch.float32)


def majority_vote(
    keys: Tensor, cu_groups: Tensor, *, weights: Tensor | None = None, share_over: str = "all"
) -> Vote:
    """Vote of the rollouts of each group about its answer. No host sync off a CPU; the same on every run.

    keys [R] int64, 0 for "no answer", which neither wins nor earns; cu_groups [P+1] int32 or int64; weights [R] of any
    float type, at least 0 (None: one vote each), summed in fp64 in the order of the rollouts. A tie goes to the answer
    whose earliest rollout comes first; an answer without any weight cannot win.

    share_over: what share and runner_up divide by. "all": the votes of the whole group. Silence counts as disagreement, so
    a group in which 2 of 32 answer, both the same, has share 1/16 and does not look unanimous. "valid": the votes of the
    rollouts with an answer, as the code of SRT does (arXiv 2505.21444); that group has share 1.

    A GPU compares each rollout with each of its group, O(R x largest group). Groups of more than 1024 on average, which the
    host knows without a look, are sorted there instead, O(R log R): the same bits. One huge group among very many small
    ones is still compared.

    Raises ValueError for a bad shape, dtype, device, offset or share_over, and on a CPU for weights that are negative or
    not finite.
    """
    expect(share_over in ("all", "valid"), "share_over", "'all' or 'valid'", repr(share_over))
    check_tensors(keys=keys, cu_groups=cu_groups, weights=weights)
    majority, share, runner_up, rewards = _vote(keys, cu_groups, weights, share_over == "all")
    return Vote(
        majority=majority, share=share, runner_up=runner_up, rewards=rewards, valid=keys != 0
    )
