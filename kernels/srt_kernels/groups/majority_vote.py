"""majority_vote: answer keys -> majority, vote share and reward, per group."""

from __future__ import annotations

from dataclasses import dataclass
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

ShareOver = Literal["all", "valid"]
# Rollouts of a group on average. Up to here a GPU compares each with each. A CPU always sorts.
SORT_ABOVE = 1024


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Worked example: keys [A, A, B, 0 | 0], cu_groups [0, 4, 5], share_over "all"."""

    majority: Tensor  # [P] int64, 0 if no rollout of the group has an answer: [A, 0]
    share: Tensor  # [P] fp32, the majority's part of the votes: [2/4, 0]
    runner_up: Tensor  # [P] fp32, the next answer's part: [1/4, 0]
    rewards: Tensor  # [R] fp32, 1 if the key is the group's majority: [1, 1, 0, 0 | 0]
    valid: Tensor  # [R] bool, the key is not 0: [T, T, T, F | F]


def _check_weights(weights: Tensor, keys: Tensor) -> None:
    check_tensor("weights", weights, (len(keys),), "float", keys.device)
    is_valid = weights.isfinite() & (weights >= 0)
    check_values_on_cpu("weights", is_valid, weights, "finite, at least 0")


def vote_by_sorting(
    keys: Tensor, cu_groups: Tensor, weights: Tensor | None, share_over_all: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The twin of vote_by_comparing in majority_vote_kernel.py, the same bits, in O(R log R)."""
    rollouts = len(keys)
    group = segment_ids(cu_groups, rollouts)
    valid = keys != 0
    if weights is None:
        weights = torch.ones_like(keys, dtype=torch.float64)
    weights = weights.double()
    # A rollout without weight does not decide a tie. Each answer with votes has others.
    votes = votes_per_key(keys, group, weights).where(valid & (weights > 0), 0.0)
    most_votes = segment_reduce(votes, "max", cu_groups)
    is_leading = (votes == most_votes[group]) & (votes > 0)
    index = torch.arange(rollouts, device=keys.device)
    # The earliest leading rollout wins. A group without one reads the 0 behind the keys.
    candidates = index.where(is_leading, rollouts)
    winner = segment_reduce(candidates, "min", cu_groups, initial=rollouts).long()
    majority = torch.cat([keys, keys.new_zeros(1)])[winner]
    agrees = valid & (keys == majority[group])
    second_votes = segment_reduce(votes.where(~agrees, 0.0), "max", cu_groups)
    all_votes = _sums(weights if share_over_all else weights.where(valid, 0.0), cu_groups)
    all_votes = all_votes.where(all_votes > 0, 1.0)
    share = (most_votes / all_votes).float()
    runner_up = (second_votes / all_votes).float()
    return majority, share, runner_up, agrees.float()


def votes_per_key(keys: Tensor, group: Tensor, weights: Tensor) -> Tensor:
    """[R] fp64: the summed weights of the rollouts of the same group with the same key.

    keys [R] int64; 0 is a key like any other. group [R] int64, ascending. weights [R] fp64, summed
    in the order of the rollouts. Does not synchronise with the host.
    """
    order = torch.argsort(keys, stable=True)
    order = order[torch.argsort(group[order], stable=True)]  # by group, then key, then rollout
    keys = keys[order]
    group = group[order]
    starts = torch.ones_like(keys, dtype=torch.bool)
    starts[1:] = (keys[1:] != keys[:-1]) | (group[1:] != group[:-1])
    run = starts.long().cumsum(0) - 1
    # There are at most R runs, so [R+1] offsets hold them all. Runs that do not exist are empty, at
    # the end.
    offsets = torch.searchsorted(run, torch.arange(len(keys) + 1, device=keys.device))
    votes = torch.empty_like(weights)
    votes[order] = _sums(weights[order], offsets)[run]
    return votes


def _sums(values: Tensor, offsets: Tensor) -> Tensor:
    """[R] -> [S] fp64, each sum in order.

    Of a column: a GPU sums a vector as a tree, so sums that tie here might not tie there.
    """
    return segment_reduce(values[:, None], "sum", offsets)[:, 0]


@torch.library.custom_op(
    "srt_kernels::majority_vote",
    mutates_args=(),
    schema="(Tensor keys, Tensor cu_groups, Tensor? weights, bool share_over_all)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
@on_device_of_tensors
def _forward(
    keys: Tensor, cu_groups: Tensor, weights: Tensor | None, share_over_all: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return majority [P], share [P], runner_up [P] and rewards [R]."""
    check_tensor("keys", keys, (None,), (torch.int64,), keys.device)
    check_offsets("cu_groups", cu_groups, len(keys), keys.device)
    if weights is not None:
        _check_weights(weights, keys)
    if use_triton(keys) and len(keys) <= SORT_ABOVE * (len(cu_groups) - 1):
        # Imported here because Triton is optional.
        from srt_kernels.groups.majority_vote_kernel import vote_by_comparing

        return vote_by_comparing(keys, cu_groups, weights, share_over_all)
    return vote_by_sorting(keys, cu_groups, weights, share_over_all)


@_forward.register_fake
def _fake_forward(
    keys: Tensor, cu_groups: Tensor, weights: Tensor | None, share_over_all: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    majority = keys.new_empty(cu_groups.shape[0] - 1)
    share = torch.empty_like(majority, dtype=torch.float32)
    runner_up = torch.empty_like(share)
    return majority, share, runner_up, torch.empty_like(keys, dtype=torch.float32)


def majority_vote(
    keys: Tensor,
    cu_groups: Tensor,
    *,
    weights: Tensor | None = None,
    share_over: ShareOver = "all",
) -> Vote:
    """Vote of the rollouts of each group about its answer.

    Synchronises with the host only for CPU tensors. The same on every run. A tie goes to the answer
    whose earliest rollout with a weight above 0 comes first. An answer without any weight cannot
    win.

    A GPU compares each rollout with each of its group, O(R x largest group). Groups of more than
    1024 rollouts on average are sorted instead, O(R log R), with the same bits. The host knows the
    average without a synchronisation. One huge group among very many small ones is still compared.

    Args:
        keys: [R] int64. 0 is "no answer": it neither wins nor earns a reward.
        cu_groups: [P+1] int32 or int64.
        weights: [R] of any float type, at least 0, summed in fp64 in the order of the rollouts.
            None: one vote each.
        share_over: what share and runner_up divide by.
            all: the votes of the whole group. Silence counts as disagreement: a group in which 2 of
            32 answer, both the same, has share 1/16 and does not look unanimous.
            valid: the votes of the rollouts with an answer, as the code of SRT does (arXiv
            2505.21444). That group has share 1.

    Raises:
        ValueError: a bad shape, dtype, device, offset or share_over; on a CPU also weights that are
            negative or not finite.
    """
    is_choice = share_over in get_args(ShareOver)
    expect(is_choice, "share_over", "'all' or 'valid'", repr(share_over))
    check_tensors(keys=keys, cu_groups=cu_groups, weights=weights)
    share_over_all = share_over == "all"
    majority, share, runner_up, rewards = _forward(keys, cu_groups, weights, share_over_all)
    return Vote(
        majority=majority, share=share, runner_up=runner_up, rewards=rewards, valid=keys != 0
    )
