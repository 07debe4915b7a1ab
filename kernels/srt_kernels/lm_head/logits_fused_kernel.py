"""Triton: statistics, objective and dlogits of a chunk's logits in one kernel, row by row."""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.lm_head.gradient_sources import GradientSource, KnownGradient
from srt_kernels.lm_head.lm_head import LMHead
from srt_kernels.lm_head.logits_kernel import dlogits_view, head_arguments, padded_size
from srt_kernels.lm_head.logits_row import (
    complete_row_statistics,
    read_row_statistics,
    scale_gradient,
    write_row_dlogits,
)
from srt_kernels.objective.policy_loss_kernel import objective_arguments
from srt_kernels.objective.token_loss import sampler_correction, token_loss


@triton.jit
def fused_kernel(
    # data of the row
    logits_ptr,
    dlogits_ptr,
    bias_ptr,
    target_ptr,
    logprob_ptr,
    entropy_ptr,
    scale_ptr,
    # data of a known gradient
    grad_logprob_ptr,
    grad_entropy_ptr,
    # data of an objective
    old_logprob_ptr,
    ref_logprob_ptr,
    sampler_logprob_ptr,
    correction_ptr,
    advantage_ptr,
    weight_ptr,
    # shapes
    vocab_size,
    padded_size,
    # strides
    logits_stride,
    dlogits_stride,
    # constants of the head
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    # constants of an objective
    clip_low,
    clip_high,
    delta,
    tau_pos,
    tau_neg,
    kl_coef,
    correction_cap,
    entropy_coef,
    SURROGATE: tl.constexpr,
    RATIO: tl.constexpr,
    KL: tl.constexpr,
    KL_BIAS_CORRECTION: tl.constexpr,
    HAS_OLD: tl.constexpr,
    SAMPLER: tl.constexpr,
    MASK: tl.constexpr,
    # constants of the launch
    HAS_KNOWN_GRADIENT: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a row's log-prob, entropy and dlogits. The gradient is known or the objective's.

    The logits are read from memory once, and a second time from the L2 cache if it holds the rows
    in flight.
    """
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * logits_stride
    target = tl.load(target_ptr + row)
    row_max, sum_exp, sum_exp_logit, target_logit = read_row_statistics(
        row_ptr=row_ptr,
        bias_ptr=bias_ptr,
        target=target,
        vocab_size=vocab_size,
        padded_size=padded_size,
        softcap=softcap,
        inv_temperature=inv_temperature,
        HAS_BIAS=HAS_BIAS,
        HAS_SOFTCAP=HAS_SOFTCAP,
        BLOCK=BLOCK,
    )
    logprob, entropy, full_max, full_sum_exp, prob_others = complete_row_statistics(
        row_max, sum_exp, sum_exp_logit, target_logit
    )
    tl.store(logprob_ptr + row, logprob)
    tl.store(entropy_ptr + row, entropy)
    grad_entropy = 0.0
    if HAS_KNOWN_GRADIENT:
        grad_logprob = tl.load(grad_logprob_ptr + row)
        if HAS_ENTROPY:
            grad_entropy = tl.load(grad_entropy_ptr + row)
    else:
        old_logprob = logprob
        if HAS_OLD:
            old_logprob = tl.load(old_logprob_ptr + row)
        ref_logprob = logprob
        if KL != "none":
            ref_logprob = tl.load(ref_logprob_ptr + row)
        if SAMPLER == "token":
            log_correction = old_logprob - tl.load(sampler_logprob_ptr + row)
            correction = sampler_correction(log_correction, correction_cap, MASK)
        else:
            correction = tl.load(correction_ptr + row)
        _, dlog_ratio, dlogprob, _, _, _ = token_loss(
            logprob=logprob,
            log_ratio=logprob - old_logprob,
            token_log_ratio=logprob - old_logprob,
            ref_logprob=ref_logprob,
            advantage=tl.load(advantage_ptr + row),
            correction=correction,
            clip_low=clip_low,
            clip_high=clip_high,
            delta=delta,
            tau_pos=tau_pos,
            tau_neg=tau_neg,
            kl_coef=kl_coef,
            SURROGATE=SURROGATE,
            RATIO=RATIO,
            KL=KL,
            KL_BIAS_CORRECTION=KL_BIAS_CORRECTION,
        )
        weight = tl.load(weight_ptr + row)
        grad_logprob = weight * (dlogprob + dlog_ratio)
        if HAS_ENTROPY:
            grad_entropy = -entropy_coef * weight
    if HAS_SCALE:
        scale = tl.load(scale_ptr)
        grad_logprob = scale_gradient(grad_logprob, scale, inv_temperature)
        grad_entropy *= scale
    write_row_dlogits(
        row_ptr=row_ptr,
        out_ptr=dlogits_ptr + row.to(tl.int64) * dlogits_stride,
        bias_ptr=bias_ptr,
        target=target,
        vocab_size=vocab_size,
        padded_size=padded_size,
        grad_logprob=grad_logprob,
        grad_entropy=grad_entropy,
        entropy=entropy,
        full_max=full_max,
        full_sum_exp=full_sum_exp,
        prob_others=prob_others,
        softcap=softcap,
        inv_temperature=inv_temperature,
        HAS_BIAS=HAS_BIAS,
        HAS_SOFTCAP=HAS_SOFTCAP,
        HAS_ENTROPY=HAS_ENTROPY,
        BLOCK=BLOCK,
    )


def write_dlogits_fused(
    logits: Tensor,
    head: LMHead,
    source: GradientSource,
    part: slice,
    logprobs: Tensor,
    entropies: Tensor,
    scale: Tensor | None,
) -> tuple[Tensor, None]:
    """Turn the logits [C, V] of targets[part] into dlogits in place, times scale. Return dlogits.

    For gradients that need one row only. Writes logprobs and entropies [n] at `part`.
    """
    dlogits = dlogits_view(logits, head)
    fused_kernel[(len(logits),)](
        logits_ptr=logits,
        dlogits_ptr=dlogits,
        bias_ptr=head.bias,
        target_ptr=head.targets[part],
        logprob_ptr=logprobs[part],
        entropy_ptr=entropies[part],
        scale_ptr=scale,
        vocab_size=logits.shape[1],
        padded_size=padded_size(logits),
        logits_stride=logits.stride(0),
        dlogits_stride=dlogits.stride(0),
        HAS_SCALE=scale is not None,
        **_source_arguments(source, part),
        **head_arguments(head),
    )
    return dlogits, None


NO_OBJECTIVE = dict(
    old_logprob_ptr=None,
    ref_logprob_ptr=None,
    sampler_logprob_ptr=None,
    correction_ptr=None,
    advantage_ptr=None,
    weight_ptr=None,
    clip_low=0.0,
    clip_high=0.0,
    delta=0.0,
    tau_pos=0.0,
    tau_neg=0.0,
    kl_coef=0.0,
    correction_cap=0.0,
    entropy_coef=0.0,
    SURROGATE=None,
    RATIO="token",
    KL="none",
    KL_BIAS_CORRECTION=False,
    HAS_OLD=False,
    SAMPLER="none",
    MASK=False,
)


def _source_arguments(source: GradientSource, part: slice) -> dict[str, Any]:
    """The arguments of fused_kernel that make the gradients of the rows of `part`."""

    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[part].contiguous()

    if isinstance(source, KnownGradient):
        return dict(
            **NO_OBJECTIVE,
            grad_logprob_ptr=rows(source.grad_logprob),
            grad_entropy_ptr=rows(source.grad_entropy),
            HAS_KNOWN_GRADIENT=True,
            HAS_ENTROPY=source.grad_entropy is not None,
        )
    inputs = source.inputs
    return dict(
        grad_logprob_ptr=None,
        grad_entropy_ptr=None,
        old_logprob_ptr=rows(inputs.old_logprobs),
        ref_logprob_ptr=rows(inputs.ref_logprobs),
        sampler_logprob_ptr=rows(inputs.sampler_logprobs),
        correction_ptr=rows(inputs.correction),
        advantage_ptr=rows(inputs.advantages),
        weight_ptr=rows(inputs.weights),
        **objective_arguments(source.objective, inputs),
        entropy_coef=float(source.objective.entropy_coef),
        HAS_KNOWN_GRADIENT=False,
        HAS_ENTROPY=source.objective.entropy_coef > 0,
    )
