"""Triton: the objective from log-probs, one program per rollout, so that means and sums over a rollout stay in it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import OPTIONS
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.token_loss import SURROGATES, correction_of, token_terms

BLOCK, WARPS = 512, 8  # tokens at a time: rollouts have hundreds to thousands


@triton.jit
def load_logprobs(logprob_ptr, old_ptr, at, inside, HAS_OLD: tl.constexpr):
    """-> log-probs, and the old ones: on policy the same."""
    logprob = tl.load(logprob_ptr + at, mask=inside, other=0.0)
    old = logprob
    if HAS_OLD:
        old = tl.load(old_ptr + at, mask=inside, other=0.0)
    return logprob, old


@triton.jit
def policy_kernel(
    logprob_ptr,
    old_ptr,
    ref_ptr,
    correction_ptr,
    sampler_ptr,
    advantage_ptr,
    weight_ptr,
    cu_seqlens_ptr,
    terms_ptr,
    total,
    clip_low,
    clip_high,
    delta,
    tau_pos,
    tau_neg,
    kl_coef,
    cap,
    surrogate: tl.constexpr,
    RATIO: tl.constexpr,
    KL: tl.constexpr,
    KL_BIAS_CORRECTION: tl.constexpr,
    HAS_OLD: tl.constexpr,
    SAMPLER: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """terms [6, total]: dL/dlogprob, loss, ratio, clipped, KL, correction. SAMPLER: how to get the correction from
    sampler_ptr, "none" (read correction_ptr), "token" or "sequence"."""
    rollout = tl.program_id(0)
    start = tl.load(cu_seqlens_ptr + rollout).to(tl.int64)
    stop = tl.load(cu_seqlens_ptr + rollout + 1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mean_log_ratio = 0.0
    log_correction = 0.0
    if RATIO == "sequence" or SAMPLER == "sequence":
        sum_log_ratio = tl.zeros((BLOCK,), tl.float64)
        sum_correction = tl.zeros((BLOCK,), tl.float64)
        for first in range(start, stop, BLOCK):
            at = first + columns
            inside = at < stop
            logprob, old = load_logprobs(logprob_ptr, old_ptr, at, inside, HAS_OLD)
            sum_log_ratio += (logprob - old).to(tl.float64)
            if SAMPLER == "sequence":
                sum_correction += (old - tl.load(sampler_ptr + at, mask=inside, other=0.0)).to(
                    tl.float64
                )
        length = tl.maximum(stop - start, 1).to(tl.float64)
        mean_log_ratio = (tl.sum(sum_log_ratio, 0) / length).to(tl.float32)
        log_correction = tl.sum(sum_correction, 0).to(tl.float32)
    through_ratio = tl.zeros((BLOCK,), tl.float64)
    for first in range(start, stop, BLOCK):
        at = first + columns
        inside = at < stop
        logprob, old = load_logprobs(logprob_ptr, old_ptr, at, inside, HAS_OLD)
        ref = logprob
        if KL != "none":
            ref = tl.load(ref_ptr + at, mask=inside, other=0.0)
        if SAMPLER == "token":
            correction = correction_of(
                old - tl.load(sampler_ptr + at, mask=inside, other=0.0), cap, MASK
            )
        elif SAMPLER == "sequence":
            correction = correction_of(log_correction + 0.0 * logprob, cap, MASK)
        else:
            correction = tl.load(correction_ptr + at, mask=inside, other=0.0)
        log_ratio = logprob - old
        if RATIO == "sequence":
            log_ratio = mean_log_ratio + 0.0 * logprob
        loss, dlog_ratio, dlogprob, ratio, clipped, kl = token_terms(
            logprob,
            log_ratio,
            logprob - old,
            ref,
            tl.load(advantage_ptr + at, mask=inside, other=0.0),
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
        weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
        if RATIO == "sequence":
            through_ratio += (weight * dlog_ratio).to(tl.float64)
        else:
            dlogprob += dlog_ratio
        tl.store(terms_ptr + at, weight * dlogprob, mask=inside)
        tl.store(terms_ptr + total + at, loss, mask=inside)
        tl.store(terms_ptr + 2 * total + at, ratio, mask=inside)
        tl.store(terms_ptr + 3 * total + at, clipped.to(tl.float32), mask=inside)
        tl.store(terms_ptr + 4 * total + at, kl, mask=inside)
        tl.store(terms_ptr + 5 * total + at, correction, mask=inside)
    if RATIO == "sequence":
        mean = (tl.sum(through_ratio, 0) / tl.maximum(stop - start, 1).to(tl.float64)).to(
            tl.float32
        )
        tl.debug_barrier()  # the stores above, by other threads perhaps
        for first in range(start, stop, BLOCK):
            at = first + columns
            inside = at < stop
            tl.store(
                terms_ptr + at, tl.load(terms_ptr + at, mask=inside, other=0.0) + mean, mask=inside
            )


def scalars(objective: Objective) -> dict:
    """The objective's numbers, by the names that the kernels have for them."""
    names = ("clip_low", "clip_high", "tau_pos", "tau_neg", "kl_coef")
    numbers = {name: getattr(objective, name) for name in names} | {"cap": objective.correction_cap}
    numbers["delta"] = float("inf") if objective.delta is None else objective.delta
    return {
        name: float(number) for name, number in numbers.items()
    }  # the JIT would compile anew for whole numbers


def constants(objective: Objective, *, has_old: bool, has_ref: bool) -> dict:
    """The objective's choices, as compile-time constants of the kernels."""
    return dict(
        surrogate=SURROGATES[objective.surrogate],
        RATIO=objective.ratio,
        KL=objective.kl if has_ref else "none",
        KL_BIAS_CORRECTION=objective.kl_bias_correction,
        HAS_OLD=has_old,
        MASK=objective.correction.endswith("mask"),
    )


def policy_terms(objective: Objective, logprobs: Tensor, inputs) -> Tensor:
    """[6, n] fp32 of a TokenInputs and log-probs [n]: see policy_kernel."""
    total = len(logprobs)
    logprobs = logprobs.contiguous()
    terms = torch.empty(6, total, dtype=torch.float32, device=logprobs.device)
    if total == 0:
        return terms
    sampler = "none" if inputs.correction is not None else objective.correction.split("_")[0]

    def pointer(tensor: Tensor | None) -> Tensor:
        return logprobs if tensor is None else tensor.contiguous()

    policy_kernel[(len(inputs.cu_seqlens) - 1,)](
        logprobs,
        pointer(inputs.old),
        pointer(inputs.ref),
        pointer(inputs.correction),
        pointer(inputs.sampler),
        pointer(inputs.advantages),
        pointer(inputs.weights),
        pointer(inputs.cu_seqlens),
        terms,
        total,
        **scalars(objective),
        **constants(objective, has_old=inputs.old is not None, has_ref=inputs.ref is not None),
        SAMPLER=sampler,
        BLOCK=BLOCK,
        num_warps=WARPS,
        **OPTIONS,
    )
    return terms
