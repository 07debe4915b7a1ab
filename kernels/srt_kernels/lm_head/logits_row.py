"""Triton functions for a row of logits: read its statistics, complete them, write its dlogits.

A row's statistics are of the vocabulary without the target: row_max = max logit, sum_exp = sum
exp(logit - row_max), sum_exp_logit = sum exp(logit - row_max) (logit - row_max). The target's logit
stands beside them. So 1 - p of the target is never a difference.
"""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from srt_kernels.objective.token_loss import expm1

LOG2E = tl.constexpr(1.4426950408889634)
# A masked logit. It is finite, so differences are finite; exp of it is 0.
LOWEST = tl.constexpr(-1e30)
# Half of fp16's range.
LARGEST_SCALED = tl.constexpr(2.0**15)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to fp32's relative precision, also far below 1.

    log(1 + y) = 2 atanh(y / (2 + y)), by its series.
    """
    y = tl.exp(-tl.abs(x))
    ratio = y / (2 + y)
    square = ratio * ratio
    tail = 1 / 9 + square * (1 / 11 + square * (1 / 13 + square / 15))
    series = 1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * tail)))
    return tl.maximum(x, 0.0) + 2 * ratio * series


@triton.jit
def tanh(x):
    """tanh to fp32's relative precision: (e - 1) / (e + 1) with e = exp(2 |x|).

    Near 0 e - 1 is by its series.
    """
    magnitude = tl.abs(x)
    magnitude = tl.where(magnitude > 10.0, 10.0, magnitude)  # nan stays nan
    growth = expm1(2 * magnitude)
    return tl.where(x < 0, -growth, growth) / (growth + 2)


@triton.jit
def apply_options(
    product,
    bias_ptr,
    columns,
    has_bias,
    is_inside,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """fp32 logits from the GEMM's products: bias, softcap and temperature. LOWEST if not is_inside.

    has_bias: where the bias may be loaded.
    """
    logits = product.to(tl.float32)
    if HAS_BIAS:
        logits += tl.load(bias_ptr + columns, mask=has_bias, other=0.0)
    if HAS_SOFTCAP:
        logits = softcap * tanh(logits / softcap)
    logits *= inv_temperature
    return tl.where(is_inside & ~(logits < LOWEST), logits, LOWEST)  # nan stays nan


@triton.jit
def read_row_statistics(
    row_ptr,
    bias_ptr,
    target,
    vocab_size,
    padded_size,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return row_max, sum_exp, sum_exp_logit and target_logit (0 if the target is another shard's).

    Each lane keeps its own statistics. They are combined at the end. A row has padded_size numbers
    in memory. Those after the vocabulary are read and not used: so loads are wide for any V.
    """
    lanes = tl.arange(0, BLOCK)
    lane_max = tl.full((BLOCK,), LOWEST, tl.float32)
    lane_sum = tl.zeros((BLOCK,), tl.float32)
    lane_logit = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        columns = start + lanes
        # Without the target's column: that mask would make the loads of the bias narrow.
        in_vocab = columns < vocab_size
        in_row = columns < padded_size
        product = tl.load(row_ptr + columns, mask=in_row, other=0.0, eviction_policy="evict_last")
        logits = apply_options(
            product=product,
            bias_ptr=bias_ptr,
            columns=columns,
            has_bias=in_vocab,
            is_inside=in_vocab & (columns != target),
            softcap=softcap,
            inv_temperature=inv_temperature,
            HAS_BIAS=HAS_BIAS,
            HAS_SOFTCAP=HAS_SOFTCAP,
        )
        shift = logits - lane_max
        exps = tl.exp2(-tl.abs(shift) * LOG2E)
        is_higher = shift > 0  # the logit is the new maximum, and the sums shrink by exps
        lane_logit = tl.where(
            is_higher, exps * (lane_logit - shift * lane_sum), lane_logit + exps * shift
        )
        lane_sum = tl.where(is_higher, exps * lane_sum + 1, lane_sum + exps)
        lane_max = tl.maximum(lane_max, logits)
    row_max = tl.max(lane_max, 0)
    shift = lane_max - row_max
    scale = tl.exp2(shift * LOG2E)
    sum_exp_logit = tl.sum(scale * (lane_logit + shift * lane_sum), 0)
    sum_exp = tl.sum(scale * lane_sum, 0)
    is_in_shard = (target >= 0) & (target < vocab_size)
    product = tl.load(row_ptr + target, mask=is_in_shard, other=0.0)
    target_logit = apply_options(
        product=product,
        bias_ptr=bias_ptr,
        columns=target,
        has_bias=is_in_shard,
        is_inside=is_in_shard,
        softcap=softcap,
        inv_temperature=inv_temperature,
        HAS_BIAS=HAS_BIAS,
        HAS_SOFTCAP=HAS_SOFTCAP,
    )
    return row_max, sum_exp, sum_exp_logit, tl.where(is_in_shard, target_logit, 0.0)


@triton.jit
def complete_row_statistics(row_max, sum_exp, sum_exp_logit, target_logit):
    """Return logprob, entropy, full_max, full_sum_exp and prob_others, as complete_statistics."""
    log_odds = row_max + tl.log(sum_exp) - target_logit
    logprob = -softplus(log_odds)
    full_max = tl.maximum(row_max, target_logit)
    shift = row_max - full_max
    scale = tl.exp(shift)
    target_shift = target_logit - full_max
    target_exp = tl.exp(target_shift)
    full_sum_exp = sum_exp * scale + target_exp
    full_sum_exp_logit = (sum_exp_logit + shift * sum_exp) * scale + target_exp * target_shift
    entropy = tl.log(full_sum_exp) - full_sum_exp_logit / full_sum_exp
    return logprob, entropy, full_max, full_sum_exp, tl.sigmoid(log_odds)


@triton.jit
def scale_gradient(grad_logprob, scale, inv_temperature):
    """grad_logprob * scale, saturated where dlogits would leave fp16's range.

    dlogits are at most this times inv_temperature, beside an entropy term of size 50. nan stays
    nan.
    """
    scaled = grad_logprob * scale
    limit = LARGEST_SCALED / inv_temperature
    return tl.where(scaled > limit, limit, tl.where(scaled < -limit, -limit, scaled))


@triton.jit
def write_row_dlogits(
    row_ptr,
    out_ptr,
    bias_ptr,
    target,
    vocab_size,
    padded_size,
    grad_logprob,
    grad_entropy,
    entropy,
    full_max,
    full_sum_exp,
    prob_others,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Overwrite the row's logits by dlogits, the gradient by the GEMM's products.

    dlogits_j = grad_logprob (1[j is target] - p_j) - grad_entropy p_j (log p_j + entropy)

    out_ptr is row_ptr, or for halves the same memory as 2-byte elements. What a block writes has
    been read by then. The padding after the vocabulary is written, too. It means nothing.
    """
    lanes = tl.arange(0, BLOCK)
    log_sum_exp = tl.log(full_sum_exp)
    for start in range(0, vocab_size, BLOCK):
        columns = start + lanes
        in_vocab = columns < vocab_size
        in_row = columns < padded_size
        product = tl.load(row_ptr + columns, mask=in_row, other=0.0, eviction_policy="evict_first")
        tl.debug_barrier()
        logits = apply_options(
            product=product,
            bias_ptr=bias_ptr,
            columns=columns,
            has_bias=in_vocab,
            is_inside=in_vocab,
            softcap=softcap,
            inv_temperature=inv_temperature,
            HAS_BIAS=HAS_BIAS,
            HAS_SOFTCAP=HAS_SOFTCAP,
        )
        prob = tl.exp2((logits - full_max) * LOG2E) / full_sum_exp
        dlogits = tl.where(columns == target, grad_logprob * prob_others, -grad_logprob * prob)
        if HAS_ENTROPY:
            dlogits -= grad_entropy * prob * (logits - full_max - log_sum_exp + entropy)
        dlogits *= inv_temperature
        if HAS_SOFTCAP:  # d softcap(x) / dx = 1 - (softcap(x) / softcap)^2
            capped = logits / (inv_temperature * softcap)
            dlogits *= 1 - capped * capped
        tl.store(out_ptr + columns, dlogits.to(out_ptr.dtype.element_ty), mask=in_row)
