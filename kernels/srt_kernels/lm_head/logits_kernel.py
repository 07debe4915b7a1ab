"""Triton: statistics of a chunk's logits, and dlogits written over them. One program per row."""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import LAUNCH_OPTIONS
from srt_kernels.lm_head.gemm import padded_columns
from srt_kernels.lm_head.lm_head import LMHead
from srt_kernels.lm_head.logits_row import (
    read_row_statistics,
    scale_gradient,
    write_row_dlogits,
)
from srt_kernels.lm_head.row_statistics import RowStatistics

# A thread reads 16 bytes at a time, 4 times. More rows in flight would fit the L2 cache no better.
BLOCK = 4096
WARPS = 8


@triton.jit
def stats_kernel(
    # data
    logits_ptr,
    bias_ptr,
    target_ptr,
    statistics_ptr,
    # shapes
    rows,
    vocab_size,
    padded_size,
    # strides
    logits_stride,
    # constants
    vocab_start,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write statistics [4, rows]: row_max, sum_exp, sum_exp_logit, target_logit."""
    row = tl.program_id(0)
    row_max, sum_exp, sum_exp_logit, target_logit = read_row_statistics(
        row_ptr=logits_ptr + row.to(tl.int64) * logits_stride,
        bias_ptr=bias_ptr,
        target=tl.load(target_ptr + row) - vocab_start,
        vocab_size=vocab_size,
        padded_size=padded_size,
        softcap=softcap,
        inv_temperature=inv_temperature,
        HAS_BIAS=HAS_BIAS,
        HAS_SOFTCAP=HAS_SOFTCAP,
        BLOCK=BLOCK,
    )
    tl.store(statistics_ptr + row, row_max)
    tl.store(statistics_ptr + rows + row, sum_exp)
    tl.store(statistics_ptr + 2 * rows + row, sum_exp_logit)
    tl.store(statistics_ptr + 3 * rows + row, target_logit)


@triton.jit
def dlogits_kernel(
    # data
    logits_ptr,
    dlogits_ptr,
    bias_ptr,
    target_ptr,
    grad_logprob_ptr,
    grad_entropy_ptr,
    statistics_ptr,
    scale_ptr,
    # shapes
    rows,
    vocab_size,
    padded_size,
    # strides
    logits_stride,
    dlogits_stride,
    # constants
    vocab_start,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write dlogits, times the scale.

    statistics [4, rows]: entropy, full_max, full_sum_exp, prob_others.
    """
    row = tl.program_id(0)
    grad_logprob = tl.load(grad_logprob_ptr + row)
    grad_entropy = 0.0
    if HAS_ENTROPY:
        grad_entropy = tl.load(grad_entropy_ptr + row)
    if HAS_SCALE:
        scale = tl.load(scale_ptr)
        grad_logprob = scale_gradient(grad_logprob, scale, inv_temperature)
        grad_entropy *= scale
    write_row_dlogits(
        row_ptr=logits_ptr + row.to(tl.int64) * logits_stride,
        out_ptr=dlogits_ptr + row.to(tl.int64) * dlogits_stride,
        bias_ptr=bias_ptr,
        target=tl.load(target_ptr + row) - vocab_start,
        vocab_size=vocab_size,
        padded_size=padded_size,
        grad_logprob=grad_logprob,
        grad_entropy=grad_entropy,
        entropy=tl.load(statistics_ptr + row),
        full_max=tl.load(statistics_ptr + rows + row),
        full_sum_exp=tl.load(statistics_ptr + 2 * rows + row),
        prob_others=tl.load(statistics_ptr + 3 * rows + row),
        softcap=softcap,
        inv_temperature=inv_temperature,
        HAS_BIAS=HAS_BIAS,
        HAS_SOFTCAP=HAS_SOFTCAP,
        HAS_ENTROPY=HAS_ENTROPY,
        BLOCK=BLOCK,
    )


def row_statistics(logits: Tensor, targets: Tensor, head: LMHead) -> Tensor:
    """[4, C] fp32 row_max, sum_exp, sum_exp_logit and target_logit of the GEMM's logits [C, V]."""
    rows, vocab_size = logits.shape
    statistics = torch.empty(4, rows, dtype=torch.float32, device=logits.device)
    stats_kernel[(rows,)](
        logits_ptr=logits,
        bias_ptr=head.bias,
        target_ptr=targets,
        statistics_ptr=statistics,
        rows=rows,
        vocab_size=vocab_size,
        padded_size=padded_size(logits),
        logits_stride=logits.stride(0),
        vocab_start=head.vocab_start,
        **head_arguments(head),
    )
    return statistics


def write_dlogits(
    logits: Tensor,
    targets: Tensor,
    statistics: RowStatistics,
    grad_logprob: Tensor,
    grad_entropy: Tensor | None,
    head: LMHead,
    scale: Tensor | None,
) -> tuple[Tensor, None]:
    """Turn the GEMM's logits [C, V] into dlogits in place, times scale (0-dim). Return dlogits.

    dlogits are of the weight's dtype. They need no row factor as those of logits_torch.py do: None.
    """
    rows, vocab_size = logits.shape
    dlogits = dlogits_view(logits, head)
    row_values = (
        statistics.entropies,
        statistics.full_max,
        statistics.full_sum_exp,
        statistics.prob_others,
    )
    dlogits_kernel[(rows,)](
        logits_ptr=logits,
        dlogits_ptr=dlogits,
        bias_ptr=head.bias,
        target_ptr=targets,
        grad_logprob_ptr=grad_logprob.contiguous(),
        grad_entropy_ptr=None if grad_entropy is None else grad_entropy.contiguous(),
        statistics_ptr=torch.stack(row_values),
        scale_ptr=scale,
        rows=rows,
        vocab_size=vocab_size,
        padded_size=padded_size(logits),
        logits_stride=logits.stride(0),
        dlogits_stride=dlogits.stride(0),
        vocab_start=head.vocab_start,
        HAS_ENTROPY=grad_entropy is not None,
        HAS_SCALE=scale is not None,
        **head_arguments(head),
    )
    return dlogits, None


def dlogits_view(logits: Tensor, head: LMHead) -> Tensor:
    """[C, V] of the weight's dtype, for dlogits: the first bytes of each row of logits."""
    return logits.view(head.weight.dtype)[:, : logits.shape[1]]


def padded_size(logits: Tensor) -> int:
    """Numbers of a row of logits [C, V] in memory: those of gemm.logits_buffer, or V."""
    columns = padded_columns(logits.shape[1])
    return columns if logits.stride(0) >= columns else logits.shape[1]


def head_arguments(head: LMHead) -> dict[str, Any]:
    """The constants of the head, and how to launch."""
    return dict(
        softcap=head.softcap or 1.0,
        inv_temperature=1 / head.temperature,
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=head.softcap is not None,
        BLOCK=min(BLOCK, triton.next_power_of_2(len(head.weight))),
        num_warps=WARPS,
        **LAUNCH_OPTIONS,
    )
