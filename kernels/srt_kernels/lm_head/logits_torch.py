"""PyTorch: what logits_kernel.py does to a chunk's logits, for CPUs and fp64.

Elementwise work goes over slabs that a cache holds. The logits become exps = exp(logits - row_max)
in place. Then the exps become dlogits in place, but for a factor of each row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srt_kernels.core.segments import chunk_slices
from srt_kernels.lm_head.lm_head import LMHead
from srt_kernels.lm_head.row_statistics import RowStatistics

# Bytes of logits that a CPU's caches hold. One thread, H = 576, V = 49152, N = 512: 0.77 s with
# slabs of 1 to 16 MiB, 0.83 s without slabs, 0.96 s with autograd over [N, V]. Small slabs mean
# many parallel regions. If other processes hold the cores, each region waits for a thread: 5.8 s
# with slabs of 1 MiB there, 1.3 s with 16 MiB. Large slabs are memory that glibc keeps: 16 MiB took
# as much time as 8 MiB and 20 to 50 MiB more memory.
SLAB_BYTES = 8 << 20
# Logit in the target's column among the others. exp of it is 0, and differences with it are finite.
LOWEST = -1e30
# Least value of a divisor: exp(a shard's row_max - the whole vocabulary's).
LEAST_SCALE = 1e-30


def row_statistics(logits: Tensor, targets: Tensor, head: LMHead) -> Tensor:
    """[4, C] row_max, sum_exp, sum_exp_logit and target_logit of the GEMM's logits [C, V].

    In place the logits become exp(logits - row_max), 0 at the target.
    """
    statistics = logits.new_empty(4, len(logits), 1)
    row_max, sum_exp, sum_exp_logit, target_logit = statistics
    column, is_in_shard = _target_columns(targets, head)
    for slab in _slabs(logits):
        exps = logits[slab]
        _apply_options(exps, head)
        target_logits = exps.gather(1, column[slab])
        target_logit[slab] = target_logits.clamp(min=LOWEST).where(is_in_shard[slab], 0.0)
        exps.scatter_(1, column[slab], target_logits.masked_fill(is_in_shard[slab], LOWEST))
        torch.amax(exps, 1, keepdim=True, out=row_max[slab])
        row_max[slab].clamp_(min=LOWEST)
        shifted = exps - row_max[slab]
        if head.bias is not None:
            # A bias of -inf masks a vocabulary entry: it must not make 0 * inf below.
            # exp(-1e4) is 0.
            shifted.clamp_(min=-1e4)
        torch.exp(shifted, out=exps)
        torch.sum(exps, 1, keepdim=True, out=sum_exp[slab])
        torch.sum(shifted.mul_(exps), 1, keepdim=True, out=sum_exp_logit[slab])
    return statistics.squeeze(2)


def write_dlogits(
    exps: Tensor,
    targets: Tensor,
    statistics: RowStatistics,
    grad_logprob: Tensor,
    grad_entropy: Tensor | None,
    head: LMHead,
    scale: None = None,
) -> tuple[Tensor, Tensor]:
    """Turn exps [C, V] into dlogits in place. Return them and their row factor [C].

    dlogits times the row factor are the gradient by the GEMM's logits:

    grad_logprob (1[j is target] - p_j) - grad_entropy p_j (log p_j + entropy), with
    p_j = exps_j exp(row_max - full_max) / full_sum_exp

    grad_logprob, grad_entropy: [C]. Without grad_entropy and softcap only the target's element of
    exps changes: there is no pass over them. scale: None, because fp16 is cast up here.
    """
    statistics = statistics.to(torch.float64)
    grad_logprob = grad_logprob.double()
    column, is_in_shard = _target_columns(targets, head)
    shard_scale = (statistics.row_max - statistics.full_max).exp().clamp(min=LEAST_SCALE)
    if grad_entropy is None and head.softcap is None:
        row_factor = -grad_logprob * shard_scale / (statistics.full_sum_exp * head.temperature)
        at_target = -statistics.prob_others
    else:
        grad_entropy = torch.zeros_like(grad_logprob) if grad_entropy is None else grad_entropy
        grad_entropy = grad_entropy.double()
        row_factor = -shard_scale / (statistics.full_sum_exp * head.temperature)
        at_target = _dlogits_at_target(statistics, grad_logprob, grad_entropy, head)
        _write_other_dlogits(exps, statistics, grad_logprob, grad_entropy, head)
    at_target = (at_target * statistics.full_sum_exp / shard_scale)[:, None].to(exps.dtype)
    exps.scatter_(1, column, at_target.where(is_in_shard, exps.gather(1, column)))
    return exps, row_factor.to(exps.dtype)


def _write_other_dlogits(
    exps: Tensor,
    statistics: RowStatistics,
    grad_logprob: Tensor,
    grad_entropy: Tensor,
    head: LMHead,
) -> None:
    """Turn exps into dlogits in place, but for the row factor and the target's column."""
    # log p = log exps + log_scale
    log_scale = statistics.row_max - statistics.full_max - statistics.full_sum_exp.log()
    offset = grad_logprob + grad_entropy * (statistics.entropies + log_scale)
    offset = offset.to(exps.dtype)[:, None]
    grad_entropy = grad_entropy.to(exps.dtype)[:, None]
    row_max = statistics.row_max.to(exps.dtype)[:, None]
    tiny = torch.finfo(exps.dtype).tiny
    for slab in _slabs(exps):
        dlogits = exps[slab]
        log_exps = dlogits.clamp(min=tiny).log_()
        dlogits.mul_((log_exps * grad_entropy[slab]).add_(offset[slab]))
        if head.softcap is not None:  # d softcap(x) / dx = 1 - (softcap(x) / softcap)^2
            logits = log_exps.add_(row_max[slab])
            capped = logits.mul_(head.temperature / head.softcap)
            dlogits.mul_(capped.square_().neg_().add_(1))


def _dlogits_at_target(
    statistics: RowStatistics, grad_logprob: Tensor, grad_entropy: Tensor, head: LMHead
) -> Tensor:
    """[C] minus the gradient by the target's logit, times the temperature."""
    probs = statistics.logprobs.exp()
    by_entropy = grad_entropy * probs * (statistics.logprobs + statistics.entropies)
    at_target = by_entropy - grad_logprob * statistics.prob_others
    if head.softcap is not None:
        capped = statistics.target_logit * head.temperature / head.softcap
        at_target = at_target * (1 - capped.square())
    return at_target


def _apply_options(logits: Tensor, head: LMHead) -> None:
    """Bias, softcap and temperature, in place."""
    if head.bias is not None:
        logits.add_(head.bias)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    if head.temperature != 1:
        logits.div_(head.temperature)


def _target_columns(targets: Tensor, head: LMHead) -> tuple[Tensor, Tensor]:
    """[C, 1] int64: the target's column in this shard, 0 if it is in another one.

    And [C, 1] bool: whether it is in this shard.
    """
    column = targets[:, None] - head.vocab_start
    is_in_shard = (column >= 0) & (column < len(head.weight))
    return column.where(is_in_shard, 0), is_in_shard


def _slabs(logits: Tensor) -> list[slice]:
    return chunk_slices(
        len(logits), max(1, SLAB_BYTES // (logits.shape[1] * logits.element_size()))
    )
