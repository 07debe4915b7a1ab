"""What trains with train.objective "sft", "dpo" and "scpo": the completions that a reward prefers.

Worked example: one prompt with answers A A B C, reward `soft`: rewards r = 2/4 2/4 1/4 1/4.
sft trains on both A. dpo and scpo take the first A as y+ and B as y-. In scpo the pair's weight is
r+ - r- = 1/4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from srt_fast.types import Reward
from srt_kernels.core.segments import segment_ids, segment_reduce


class Pairs(NamedTuple):
    """A preference pair of each of P prompts. Without an exists, the rest has no meaning."""

    exists: Tensor  # [P] bool: two rewards of the group differ
    chosen: Tensor  # [P] int64: the first rollout with the highest reward
    rejected: Tensor  # [P] int64: the first rollout with the lowest
    weights: Tensor  # [P] fp32: r+ - r-


class PairLoss(NamedTuple):
    """The loss of n pairs and its slopes."""

    loss: Tensor  # [n] fp64
    margin: Tensor  # [n] fp64: beta d
    chosen_slope: Tensor  # [n] fp64: -d loss / d log pi(y+)
    rejected_slope: Tensor  # [n] fp64: -d loss / d log pi(y-)


class PairTargets(NamedTuple):
    """What a step trains on: R rollouts, of which some are in pairs."""

    slopes: Tensor  # [R] fp32, 0 outside of pairs
    keep: Tensor  # [R] bool, True in pairs
    figures: dict[str, Tensor | int]  # pairs; and with a pair loss, pair_margin, pair_accuracy


def choose_completions(reward: Reward, cu_groups: Tensor) -> Tensor:
    """[R] bool: the rollouts that sft trains on, those with the highest reward of their group.

    A group whose rewards are all equal trains only if they are above 0: all agree with the label.
    cu_groups [P+1] int32. Does not synchronise with the device.
    """
    is_kept, highest, lowest = _extremes(reward, cu_groups)
    group = segment_ids(cu_groups, len(is_kept))
    trains = (highest > lowest) | (highest > 0)
    return is_kept & (reward.rewards == highest[group]) & trains[group]


def choose_pairs(reward: Reward, cu_groups: Tensor) -> Pairs:
    """The pair of each group. cu_groups [P+1] int32. Does not synchronise with the device."""
    is_kept, highest, lowest = _extremes(reward, cu_groups)
    count = len(is_kept)
    group = segment_ids(cu_groups, count)
    place = torch.arange(count, device=group.device)

    def first_with(value: Tensor) -> Tensor:
        has_value = is_kept & (reward.rewards == value[group])
        places = segment_reduce(place.where(has_value, count), "min", cu_groups, initial=count)
        return places.long().clamp_max(max(count - 1, 0))

    return Pairs(
        exists=highest > lowest,
        chosen=first_with(highest),
        rejected=first_with(lowest),
        weights=(highest - lowest).float(),
    )


def pair_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_reference: Tensor,
    rejected_reference: Tensor,
    *,
    beta: float,
    weights: Tensor,
    nll_weights: Tensor,
) -> PairLoss:
    """w (-log sigmoid(beta d) - nll log pi(y+)). d: log pi - log ref of y+, less that of y-.

    DPO (arXiv 2305.18290) has w = 1 and nll = 0. ScPO (arXiv 2411.04109) has w = (V(y+) - V(y-)) /
    k, where V counts the votes among k, and nll = 1 / |y+|, with |y+| the tokens of y+.

    chosen_logprobs, rejected_logprobs [n]: log pi(y+ | x) and log pi(y- | x), in nats.
    chosen_reference, rejected_reference [n]: the same of the reference. weights w and nll_weights
    nll [n]. All are computed in fp64.
    """
    chosen, rejected = chosen_logprobs.double(), rejected_logprobs.double()
    margin = beta * (chosen - chosen_reference - (rejected - rejected_reference))
    slope = weights * beta * torch.sigmoid(-margin)
    return PairLoss(
        loss=weights * (-logsigmoid(margin) - nll_weights * chosen),
        margin=margin,
        chosen_slope=slope + weights * nll_weights,
        rejected_slope=-slope,
    )


def pair_targets(
    chosen: Tensor,
    rejected: Tensor,
    logprobs: Tensor,
    reference: Tensor,
    cu_seqlens: Tensor,
    *,
    beta: float,
    weights: Tensor,
    nll: float,
) -> PairTargets:
    """The slopes of n pairs, for a loss that is a mean over the 2 n completions of the pairs.

    chosen, rejected [n] int64: places among the R rollouts. logprobs, reference [N] fp32: of every
    token under policy and reference, NaN for policy's tokens outside of pairs. cu_seqlens [R+1].
    weights [n]. nll: the weight of the cross-entropy of y+ in nats a token.

    Does not synchronise with the device.
    """
    slopes = torch.zeros(len(cu_seqlens) - 1, device=cu_seqlens.device)
    keep = torch.zeros_like(slopes, dtype=torch.bool)
    if not len(chosen):
        return PairTargets(slopes, keep, {"pairs": 0})
    policy_sums = segment_reduce(logprobs, "sum", cu_seqlens)
    reference_sums = segment_reduce(reference, "sum", cu_seqlens)
    result = pair_loss(
        policy_sums[chosen],
        policy_sums[rejected],
        reference_sums[chosen],
        reference_sums[rejected],
        beta=beta,
        weights=weights,
        nll_weights=nll / cu_seqlens.diff()[chosen].double().clamp_min(1),
    )
    places = torch.cat([chosen, rejected])
    values = torch.cat([result.chosen_slope, result.rejected_slope])
    # A pair has two completions, so the mean over completions halves its loss.
    slopes = slopes.index_copy(0, places, 2 * values.float())
    keep = keep.index_fill(0, places, True)
    figures = {
        "pairs": len(chosen),
        "loss": result.loss.mean(),
        "pair_margin": result.margin.mean(),
        "pair_accuracy": (result.margin > 0).double().mean(),
    }
    return PairTargets(slopes, keep, figures)


def _extremes(reward: Reward, cu_groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which rollouts count [R] bool, and the highest and lowest reward of each group [P] fp32.

    An unknown reward (NaN) does not count. A group of which none counts has -inf and inf.
    """
    rewards = reward.rewards
    is_kept = reward.keep & ~rewards.isnan()
    infinity = float("inf")
    highs, lows = rewards.where(is_kept, -infinity), rewards.where(is_kept, infinity)
    highest = segment_reduce(highs, "max", cu_groups, initial=-infinity)
    lowest = segment_reduce(lows, "min", cu_groups, initial=infinity)
    return is_kept, highest.float(), lowest.float()
