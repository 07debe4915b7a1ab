"""Triton: the objective from log-probs, one program per rollout.

Means and sums over a rollout stay in its program.
"""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import LAUNCH_OPTIONS
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.token_inputs import TokenInputs
from srt_kernels.objective.token_loss import (
    loss_choices,
    loss_numbers,
    sampler_correction,
    token_loss,
)

BLOCK = 512  # tokens at a time: rollouts have hundreds to thousands
WARPS = 8


@triton.jit
def load_logprobs(logprob_ptr, old_logprob_ptr, index, is_inside, HAS_OLD: tl.constexpr):
    """Return log-probs and old log-probs. On policy they are the same."""
    logprob = tl.load(logprob_ptr + index, mask=is_inside, other=0.0)
    old_logprob = logprob
    if HAS_OLD:
        old_logprob = tl.load(old_logprob_ptr + index, mask=is_inside, other=0.0)
    return logprob, old_logprob


@triton.jit
def policy_kernel(
    # data
    logprob_ptr,
    old_logprob_ptr,
    ref_logprob_ptr,
    sampler_logprob_ptr,
    correction_ptr,
    advantage_ptr,
    weight_ptr,
    cu_seqlens_ptr,
    terms_ptr,
    # shapes
    total,
    # constants of the objective
    clip_low,
    clip_high,
    delta,
    tau_pos,
    tau_neg,
    kl_coef,
    correction_cap,
    SURROGATE: tl.constexpr,
    RATIO: tl.constexpr,
    KL: tl.constexpr,
    KL_BIAS_CORRECTION: tl.constexpr,
    HAS_OLD: tl.constexpr,
    SAMPLER: tl.constexpr,
    MASK: tl.constexpr,
    # constants of the launch
    BLOCK: tl.constexpr,
):
    """Write terms [6, total]: the fields of TokenTerms.

    SAMPLER: "none" loads the correction, "token" and "sequence" compute it from sampler log-probs.
    """
    rollout = tl.program_id(0)
    start = tl.load(cu_seqlens_ptr + rollout).to(tl.int64)
    stop = tl.load(cu_seqlens_ptr + rollout + 1).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    mean_log_ratio = 0.0
    sum_log_correction = 0.0
    if RATIO == "sequence" or SAMPLER == "sequence":
        lane_log_ratio = tl.zeros((BLOCK,), tl.float64)
        lane_log_correction = tl.zeros((BLOCK,), tl.float64)
        for first in range(start, stop, BLOCK):
            index = first + lanes
            is_inside = index < stop
            logprob, old_logprob = load_logprobs(
                logprob_ptr, old_logprob_ptr, index, is_inside, HAS_OLD
            )
            lane_log_ratio += (logprob - old_logprob).to(tl.float64)
            if SAMPLER == "sequence":
                sampler_logprob = tl.load(sampler_logprob_ptr + index, mask=is_inside, other=0.0)
                lane_log_correction += (old_logprob - sampler_logprob).to(tl.float64)
        length = tl.maximum(stop - start, 1).to(tl.float64)
        mean_log_ratio = (tl.sum(lane_log_ratio, 0) / length).to(tl.float32)
        sum_log_correction = tl.sum(lane_log_correction, 0).to(tl.float32)
    through_ratio = tl.zeros((BLOCK,), tl.float64)
    for first in range(start, stop, BLOCK):
        index = first + lanes
        is_inside = index < stop
        logprob, old_logprob = load_logprobs(
            logprob_ptr, old_logprob_ptr, index, is_inside, HAS_OLD
        )
        ref_logprob = logprob
        if KL != "none":
            ref_logprob = tl.load(ref_logprob_ptr + index, mask=is_inside, other=0.0)
        if SAMPLER == "token":
            sampler_logprob = tl.load(sampler_logprob_ptr + index, mask=is_inside, other=0.0)
            correction = sampler_correction(old_logprob - sampler_logprob, correction_cap, MASK)
        elif SAMPLER == "sequence":
            log_correction = sum_log_correction + 0.0 * logprob
            correction = sampler_correction(log_correction, correction_cap, MASK)
        else:
            correction = tl.load(correction_ptr + index, mask=is_inside, other=0.0)
        log_ratio = logprob - old_logprob
        if RATIO == "sequence":
            log_ratio = mean_log_ratio + 0.0 * logprob
        advantage = tl.load(advantage_ptr + index, mask=is_inside, other=0.0)
        loss, dlog_ratio, dlogprob, ratio, is_clipped, kl = token_loss(
            logprob=logprob,
            log_ratio=log_ratio,
            token_log_ratio=logprob - old_logprob,
            ref_logprob=ref_logprob,
            advantage=advantage,
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
        weight = tl.load(weight_ptr + index, mask=is_inside, other=0.0)
        if RATIO == "sequence":
            through_ratio += (weight * dlog_ratio).to(tl.float64)
        else:
            dlogprob += dlog_ratio
        tl.store(terms_ptr + index, weight * dlogprob, mask=is_inside)
        tl.store(terms_ptr + total + index, loss, mask=is_inside)
        tl.store(terms_ptr + 2 * total + index, ratio, mask=is_inside)
        tl.store(terms_ptr + 3 * total + index, is_clipped.to(tl.float32), mask=is_inside)
        tl.store(terms_ptr + 4 * total + index, kl, mask=is_inside)
        tl.store(terms_ptr + 5 * total + index, correction, mask=is_inside)
    if RATIO == "sequence":
        length = tl.maximum(stop - start, 1).to(tl.float64)
        mean = (tl.sum(through_ratio, 0) / length).to(tl.float32)
        tl.debug_barrier()  # other threads may have made the stores above
        for first in range(start, stop, BLOCK):
            index = first + lanes
            is_inside = index < stop
            grad_logprob = tl.load(terms_ptr + index, mask=is_inside, other=0.0)
            tl.store(terms_ptr + index, grad_logprob + mean, mask=is_inside)


def objective_arguments(objective: Objective, inputs: TokenInputs) -> dict[str, Any]:
    """The constants of the objective that policy_kernel and fused_kernel take."""
    correction = objective.correction
    return dict(
        **loss_numbers(objective),
        **loss_choices(objective, has_ref=inputs.ref_logprobs is not None),
        correction_cap=float(objective.correction_cap),
        HAS_OLD=inputs.old_logprobs is not None,
        SAMPLER="none" if inputs.correction is not None else correction.split("_")[0],
        MASK=correction.endswith("mask"),
    )


def policy_terms(objective: Objective, logprobs: Tensor, inputs: TokenInputs) -> Tensor:
    """[6, n] fp32 from log-probs [n]: the fields of TokenTerms, in order."""
    logprobs = logprobs.contiguous()
    terms = torch.empty(6, len(logprobs), dtype=torch.float32, device=logprobs.device)
    if len(logprobs) == 0:
        return terms

    def pointer(tensor: Tensor | None) -> Tensor:
        return logprobs if tensor is None else tensor.contiguous()

    policy_kernel[(len(inputs.cu_seqlens) - 1,)](
        logprob_ptr=logprobs,
        old_logprob_ptr=pointer(inputs.old_logprobs),
        ref_logprob_ptr=pointer(inputs.ref_logprobs),
        sampler_logprob_ptr=pointer(inputs.sampler_logprobs),
        correction_ptr=pointer(inputs.correction),
        advantage_ptr=pointer(inputs.advantages),
        weight_ptr=pointer(inputs.weights),
        cu_seqlens_ptr=pointer(inputs.cu_seqlens),
        terms_ptr=terms,
        total=len(logprobs),
        **objective_arguments(objective, inputs),
        BLOCK=BLOCK,
        num_warps=WARPS,
        **LAUNCH_OPTIONS,
    )
    return terms
