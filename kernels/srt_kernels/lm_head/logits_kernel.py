"""Triton: a chunk's logits, row by row: statistics, objective, and dlogits written over the logits.

One program per row. A row's statistics are of the vocabulary without the target: peak = max z, s = sum exp(z - peak),
dot = sum exp(z - peak) (z - peak); the target's z stands beside them. So 1 - p_target is never a difference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import OPTIONS
from srt_kernels.objective.policy_loss_kernel import constants, scalars
from srt_kernels.objective.token_loss import correction_of, expm1, token_terms

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)  # of a masked logit: finite, so that differences are; exp of it is 0
# Threads read 16 bytes at a time, 4 times; more rows in flight than this would not fit the L2 cache any better.
BLOCK, WARPS = 4096, 8


@triton.jit
def softplus(x):
    """log(1 + exp(x)), to fp32's relative precision also where it is far below 1: 2 atanh(y / (2 + y)) for log(1 + y)."""
    y = tl.exp(-tl.abs(x))
    r = y / (2 + y)
    q = r * r
    series = 1 + q * (
        1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15)))))
    )
    return tl.maximum(x, 0.0) + 2 * r * series


@triton.jit
def tanh(x):
    """To fp32's relative precision: (e - 1) / (e + 1) with e = exp(2 |x|), e - 1 by its series near 0."""
    a = tl.abs(x)
    a = tl.where(a > 10.0, 10.0, a)  # nan stays nan
    grown = expm1(2 * a)
    return tl.where(x < 0, -grown, grown) / (grown + 2)


@triton.jit
def logits_of(
    raw,
    bias_ptr,
    columns,
    exists,
    inside,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """fp32 logits from what the GEMM gave, LOWEST where not inside. exists: where the bias may be read."""
    z = raw.to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + columns, mask=exists, other=0.0)
    if HAS_SOFTCAP:
        z = softcap * tanh(z / softcap)
    z *= inv_temperature
    return tl.where(inside & ~(z < LOWEST), z, LOWEST)  # nan stays nan


@triton.jit
def read_row(
    row_ptr,
    bias_ptr,
    target,
    V,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """-> peak, s, dot, z of the target (0 where it is another shard's). Each lane keeps its own, combined at the end."""
    lanes = tl.arange(0, BLOCK)
    peak = tl.full((BLOCK,), LOWEST, tl.float32)
    s = tl.zeros((BLOCK,), tl.float32)
    dot = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + lanes
        raw = tl.load(row_ptr + columns, mask=columns < V, other=0.0, eviction_policy="evict_last")
        exists = (
            columns < V
        )  # alone, as a mask with the target's place would make the bias' loads narrow
        inside = exists & (columns != target)
        z = logits_of(
            raw, bias_ptr, columns, exists, inside, softcap, inv_temperature, HAS_BIAS, HAS_SOFTCAP
        )
        d = z - peak
        e = tl.exp2(-tl.abs(d) * LOG2E)
        higher = d > 0  # z is the peak from here on, and what was summed shrinks by e
        dot = tl.where(higher, e * (dot - d * s), dot + e * d)
        s = tl.where(higher, e * s + 1, s + e)
        peak = tl.maximum(peak, z)
    top = tl.max(peak, 0)
    shrink = tl.exp2((peak - top) * LOG2E)
    dot = tl.sum(shrink * (dot + (peak - top) * s), 0)
    s = tl.sum(shrink * s, 0)
    here = (target >= 0) & (target < V)
    raw = tl.load(row_ptr + target, mask=here, other=0.0)
    z_target = logits_of(
        raw, bias_ptr, target, here, here, softcap, inv_temperature, HAS_BIAS, HAS_SOFTCAP
    )
    return top, s, dot, tl.where(here, z_target, 0.0)


@triton.jit
def finish_row(peak, s, dot, z_target):
    """-> log-prob, entropy, peak and sum over the whole vocabulary, 1 - p of the target. As normalise in head.py."""
    x = peak + tl.log(s) - z_target
    logprob = -softplus(x)
    top = tl.maximum(peak, z_target)
    others = tl.exp(peak - top)
    own = tl.exp(z_target - top)
    total = s * others + own
    entropy = tl.log(total) - ((dot + (peak - top) * s) * others + own * (z_target - top)) / total
    return logprob, entropy, top, total, tl.sigmoid(x)


@triton.jit
def write_row(
    row_ptr,
    out_ptr,
    bias_ptr,
    target,
    V,
    softcap,
    inv_temperature,
    g,
    h,
    logprob,
    entropy,
    top,
    total,
    q,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Overwrite the row: dz_j = g (1[j is target] - p_j) - h p_j (log p_j + entropy), by the raw logits.

    out_ptr is row_ptr or, for halves, the same memory as 2-byte elements: what a block writes has been read by then.
    """
    lanes = tl.arange(0, BLOCK)
    log_total = tl.log(total)
    for start in range(0, V, BLOCK):
        columns = start + lanes
        inside = columns < V
        raw = tl.load(row_ptr + columns, mask=inside, other=0.0, eviction_policy="evict_first")
        tl.debug_barrier()
        z = logits_of(
            raw, bias_ptr, columns, inside, inside, softcap, inv_temperature, HAS_BIAS, HAS_SOFTCAP
        )
        p = tl.exp2((z - top) * LOG2E) / total
        d = tl.where(columns == target, g * q, -g * p)
        if HAS_H:
            d -= h * p * (z - top - log_total + entropy)
        d *= inv_temperature
        if HAS_SOFTCAP:  # d softcap(x) / dx = 1 - (softcap(x) / softcap)^2
            capped = z / (inv_temperature * softcap)
            d *= 1 - capped * capped
        tl.store(out_ptr + columns, d.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def stats_kernel(
    z_ptr,
    bias_ptr,
    target_ptr,
    stats_ptr,
    stride,
    V,
    rows,
    vocab_start,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """stats [4, rows]: peak, s, dot, z of the target."""
    row = tl.program_id(0)
    target = tl.load(target_ptr + row) - vocab_start
    peak, s, dot, z_target = read_row(
        z_ptr + row.to(tl.int64) * stride,
        bias_ptr,
        target,
        V,
        softcap,
        inv_temperature,
        HAS_BIAS,
        HAS_SOFTCAP,
        BLOCK,
    )
    tl.store(stats_ptr + row, peak)
    tl.store(stats_ptr + rows + row, s)
    tl.store(stats_ptr + 2 * rows + row, dot)
    tl.store(stats_ptr + 3 * rows + row, z_target)


@triton.jit
def dlogits_kernel(
    z_ptr,
    out_ptr,
    bias_ptr,
    target_ptr,
    g_ptr,
    h_ptr,
    rows_ptr,
    stride,
    out_stride,
    V,
    rows,
    vocab_start,
    softcap,
    inv_temperature,
    scale_ptr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_H: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """rows [5, rows]: log-prob, entropy, peak, sum, 1 - p of the target. dlogits come multiplied by the scale."""
    row = tl.program_id(0)
    scale = 1.0
    if SCALED:
        scale = tl.load(scale_ptr)
    at = rows_ptr + row
    h = 0.0
    if HAS_H:
        h = tl.load(h_ptr + row) * scale
    write_row(
        z_ptr + row.to(tl.int64) * stride,
        out_ptr + row.to(tl.int64) * out_stride,
        bias_ptr,
        tl.load(target_ptr + row) - vocab_start,
        V,
        softcap,
        inv_temperature,
        tl.load(g_ptr + row) * scale,
        h,
        tl.load(at),
        tl.load(at + rows),
        tl.load(at + 2 * rows),
        tl.load(at + 3 * rows),
        tl.load(at + 4 * rows),
        HAS_BIAS,
        HAS_SOFTCAP,
        HAS_H,
        BLOCK,
    )


@triton.jit
def fused_kernel(
    z_ptr,
    out_ptr,
    bias_ptr,
    target_ptr,
    g_ptr,
    h_ptr,
    old_ptr,
    ref_ptr,
    correction_ptr,
    sampler_ptr,
    advantage_ptr,
    weight_ptr,
    logprob_ptr,
    entropy_ptr,
    scale_ptr,
    stride,
    out_stride,
    V,
    softcap,
    inv_temperature,
    clip_low,
    clip_high,
    delta,
    tau_pos,
    tau_neg,
    kl_coef,
    cap,
    entropy_coef,
    GIVEN: tl.constexpr,
    surrogate: tl.constexpr,
    RATIO: tl.constexpr,
    KL: tl.constexpr,
    KL_BIAS_CORRECTION: tl.constexpr,
    HAS_OLD: tl.constexpr,
    SAMPLER: tl.constexpr,
    MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_H: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Statistics, dL/dlogprob (GIVEN, or by the objective) and dlogits of a row: the logits are read from memory once,
    and a second time from the L2 cache where that holds the rows in flight."""
    row = tl.program_id(0)
    row_ptr = z_ptr + row.to(tl.int64) * stride
    target = tl.load(target_ptr + row)
    peak, s, dot, z_target = read_row(
        row_ptr, bias_ptr, target, V, softcap, inv_temperature, HAS_BIAS, HAS_SOFTCAP, BLOCK
    )
    logprob, entropy, top, total, q = finish_row(peak, s, dot, z_target)
    tl.store(logprob_ptr + row, logprob)
    tl.store(entropy_ptr + row, entropy)
    h = 0.0
    if GIVEN:
        g = tl.load(g_ptr + row)
        if HAS_H:
            h = tl.load(h_ptr + row)
    else:
        old = logprob
        if HAS_OLD:
            old = tl.load(old_ptr + row)
        ref = logprob
        if KL != "none":
            ref = tl.load(ref_ptr + row)
        if SAMPLER == "token":
            correction = correction_of(old - tl.load(sampler_ptr + row), cap, MASK)
        else:
            correction = tl.load(correction_ptr + row)
        _, dlog_ratio, dlogprob, _, _, _ = token_terms(
            logprob,
            logprob - old,
            logprob - old,
            ref,
            tl.load(advantage_ptr + row),
            correction,
            clip_low,
            clip_high,
            delta,
            tau_pos,
            tau_neg,
            kl_coef,
            surrogate,
            RATIO,
            KL,
            KL_BIAS_CORRECTION,
        )
        weight = tl.load(weight_ptr + row)
        g = weight * (dlogprob + dlog_ratio)
        if HAS_H:
            h = -entropy_coef * weight
    if SCALED:
        scale = tl.load(scale_ptr)
        g *= scale
        h *= scale
    write_row(
        row_ptr,
        out_ptr + row.to(tl.int64) * out_stride,
        bias_ptr,
        target,
        V,
        softcap,
        inv_temperature,
        g,
        h,
        logprob,
        entropy,
        top,
        total,
        q,
        HAS_BIAS,
        HAS_SOFTCAP,
        HAS_H,
        BLOCK,
    )


def _head_arguments(head) -> dict:
    return dict(
        softcap=head.softcap or 1.0,
        inv_temperature=1 / head.temperature,
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=head.softcap is not None,
        BLOCK=min(BLOCK, triton.next_power_of_2(len(head.weight))),
        num_warps=WARPS,
        **OPTIONS,
    )


def row_stats(z: Tensor, targets: Tensor, head) -> Tensor:
    """[4, C] fp32 of logits z [C, V] as the GEMM left them: see stats_kernel."""
    stats = torch.empty(4, len(z), dtype=torch.float32, device=z.device)
    stats_kernel[(len(z),)](
        z,
        head.bias,
        targets,
        stats,
        z.stride(0),
        z.shape[1],
        len(z),
        head.vocab_start,
        **_head_arguments(head),
    )
    return stats


def row_dlogits(
    z: Tensor, targets: Tensor, stats, g: Tensor, h: Tensor | None, head, scale: Tensor | None
) -> tuple[Tensor, None]:
    """Turn logits z [C, V] in place into the gradient by them, times scale (0-dim): [C, V] of the weight's dtype.

    And no factor of the rows, which torch_rows.py has.
    """
    out = z.view(head.weight.dtype)[:, : z.shape[1]]
    rows = torch.stack([stats.logprobs, stats.entropies, stats.top, stats.total, stats.q])
    dlogits_kernel[(len(z),)](
        z,
        out,
        head.bias,
        targets,
        g.contiguous(),
        None if h is None else h.contiguous(),
        rows,
        z.stride(0),
        out.stride(0),
        z.shape[1],
        len(z),
        head.vocab_start,
        scale_ptr=scale,
        HAS_H=h is not None,
        SCALED=scale is not None,
        **_head_arguments(head),
    )
    return out, None


def row_fused(
    z: Tensor,
    targets: Tensor,
    source,
    part: slice,
    logprobs: Tensor,
    entropies: Tensor,
    head,
    scale: Tensor | None,
) -> tuple[Tensor, None]:
    """row_stats and row_dlogits in one kernel, for gradients that need one row only.

    source: KnownGradient or ObjectiveGradient (head.py) over all rows, of which `part` are those of z. Writes log-probs and entropies [C].
    """
    out = z.view(head.weight.dtype)[:, : z.shape[1]]
    objective, inputs = source.objective, source.inputs
    given = objective is None

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[part].contiguous()

    if given:
        choices = dict(
            surrogate=None,
            RATIO="token",
            KL="none",
            KL_BIAS_CORRECTION=False,
            HAS_OLD=False,
            MASK=False,
        )
        numbers = dict.fromkeys(
            ("clip_low", "clip_high", "delta", "tau_pos", "tau_neg", "kl_coef", "cap"), 0.0
        )
        tensors, sampler, coefficient = (None,) * 6, "none", 0.0
    else:
        choices = constants(
            objective, has_old=inputs.old is not None, has_ref=inputs.ref is not None
        )
        numbers, coefficient = scalars(objective), float(objective.entropy_coef)
        sampler = "token" if inputs.correction is None else "none"
        names = ("old", "ref", "correction", "sampler", "advantages", "weights")
        tensors = tuple(of(getattr(inputs, name)) for name in names)
    fused_kernel[(len(z),)](
        z,
        out,
        head.bias,
        targets,
        of(source.g),
        of(source.h),
        *tensors,
        logprobs,
        entropies,
        scale,
        z.stride(0),
        out.stride(0),
        z.shape[1],
        entropy_coef=coefficient,
        **numbers,
        GIVEN=given,
        **choices,
        SAMPLER=sampler,
        HAS_H=source.h is not None if given else coefficient > 0,
        SCALED=scale is not None,
        **_head_arguments(head),
    )
    return out, None
