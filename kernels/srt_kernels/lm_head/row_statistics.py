"""Log-probs and entropies from the statistics of a chunk's rows."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of C rows, each [C], over the whole vocabulary but for row_max."""

    row_max: Tensor  # max logit of this shard without the target
    full_max: Tensor  # max logit
    full_sum_exp: Tensor  # sum exp(logit - full_max)
    prob_others: Tensor  # 1 - p of the target
    target_logit: Tensor
    logprobs: Tensor
    entropies: Tensor

    def to(self, dtype: torch.dtype) -> RowStatistics:
        return RowStatistics(*[getattr(self, field.name).to(dtype) for field in fields(self)])


def complete_statistics(shard_statistics: Tensor, group: dist.ProcessGroup | None) -> RowStatistics:
    """Statistics over the whole vocabulary from [4, C] of each shard.

    The four are row_max, sum_exp, sum_exp_logit and target_logit, as in logits_kernel.py. The
    shards without the target have a target_logit of 0.

    The log-prob is -softplus(log sum_exp + row_max - target_logit). This is also right where 1 - p
    is below fp32's resolution of p. In fp64: on a CPU vectorised functions of fp32 round the last
    few elements of a tensor differently from the others.
    """
    row_max, sum_exp, sum_exp_logit, target_logit = shard_statistics.double()
    others_max = row_max
    if group is not None:
        others_max = row_max.clone()
        dist.all_reduce(others_max, dist.ReduceOp.MAX, group)
        shift = row_max - others_max
        scale = shift.exp()
        shifted_sum = sum_exp_logit + shift * sum_exp
        sums = torch.stack([sum_exp * scale, shifted_sum * scale, target_logit])
        dist.all_reduce(sums, group=group)
        sum_exp, sum_exp_logit, target_logit = sums
    log_odds = others_max + sum_exp.log() - target_logit  # of the others against the target
    full_max = torch.maximum(others_max, target_logit)
    shift = others_max - full_max
    scale = shift.exp()
    target_shift = target_logit - full_max
    target_exp = target_shift.exp()
    full_sum_exp = sum_exp * scale + target_exp
    full_sum_exp_logit = (sum_exp_logit + shift * sum_exp) * scale + target_exp * target_shift
    statistics = RowStatistics(
        row_max=row_max,
        full_max=full_max,
        full_sum_exp=full_sum_exp,
        prob_others=log_odds.sigmoid(),
        target_logit=target_logit,
        logprobs=-softplus(log_odds),
        entropies=full_sum_exp.log() - full_sum_exp_logit / full_sum_exp,
    )
    return statistics.to(shard_statistics.dtype)
