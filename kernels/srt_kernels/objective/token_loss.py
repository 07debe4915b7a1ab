"""The arithmetic of an objective, written once: a token's loss and its derivatives.

Triton kernels call these functions with scalars and blocks. The PyTorch path calls them with
tensors (as_torch in core/backend.py). A new surrogate is one function here, its row in SURROGATES,
and its name in Surrogate (objective.py).
"""

# `tl` is None without Triton.
# pyright: reportOptionalMemberAccess=false

from __future__ import annotations

from typing import Any

from srt_kernels.core.backend import kernel_function
from srt_kernels.objective.objective import Objective, Surrogate

try:
    import triton.language as tl
except ImportError:  # Triton is optional. as_torch uses TensorLanguage instead.
    tl = None

# Bounds are taken by `where`: Triton's minimum and maximum turn a nan into the bound. A surrogate
# returns the loss, dloss/dratio, dloss/dlogprob at a fixed ratio, and whether the ratio was
# clipped.


@kernel_function
def clip(ratio, logprob, advantage, clip_low, clip_high, delta, tau_pos, tau_neg):
    is_over = (advantage > 0) & (ratio > 1 + clip_high)
    is_under = (advantage < 0) & ((ratio < 1 - clip_low) | (ratio > delta))
    is_clipped = is_over | is_under
    capped = tl.where(ratio > 1 + clip_high, 1 + clip_high, ratio)
    floored = tl.where(ratio < 1 - clip_low, 1 - clip_low, ratio)
    gain = tl.where(advantage > 0, capped, tl.where(ratio > delta, delta, floored))
    return -gain * advantage, tl.where(is_clipped, 0.0, -advantage), 0.0 * advantage, is_clipped


@kernel_function
def cispo(ratio, logprob, advantage, clip_low, clip_high, delta, tau_pos, tau_neg):
    slope = -tl.where(ratio > clip_high, clip_high, ratio) * advantage
    return slope * logprob, 0.0 * advantage, slope, ratio > clip_high


@kernel_function
def sapo(ratio, logprob, advantage, clip_low, clip_high, delta, tau_pos, tau_neg):
    zero = 0.0 * advantage
    tau = tl.where(advantage > 0, zero + tau_pos, zero + tau_neg)
    gate = tl.sigmoid(tau * (ratio - 1))
    return -4 / tau * gate * advantage, -4 * gate * (1 - gate) * advantage, zero, ratio < 0


@kernel_function
def reinforce(ratio, logprob, advantage, clip_low, clip_high, delta, tau_pos, tau_neg):
    slope = -ratio * advantage
    return slope * logprob, 0.0 * advantage, slope, ratio < 0


SURROGATES: dict[Surrogate, Any] = {
    "clip": clip,
    "cispo": cispo,
    "sapo": sapo,
    "reinforce": reinforce,
}


@kernel_function
def bounded_exp(log_ratio):
    """exp of a log-ratio, at most exp(20).

    A greater ratio says no more than "far off", and would end in inf.
    """
    return tl.exp(tl.where(log_ratio > 20.0, 20.0, log_ratio))


@kernel_function
def expm1(x):
    """exp(x) - 1.

    For |x| < 0.25, where the difference would cancel, its series to x^12, exact to fp64's rounding.
    """
    tail = 1 + x / 7 * (1 + x / 8 * (1 + x / 9 * (1 + x / 10 * (1 + x / 11 * (1 + x / 12)))))
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * tail)))))
    return tl.where(tl.abs(x) < 0.25, series, tl.exp(x) - 1)


@kernel_function
def kl_estimate(logprob, ref_logprob, KL):
    """KL estimate at a token and its derivative by the log-prob."""
    difference = logprob - ref_logprob
    if KL == "k1":
        return difference, 0.0 * difference + 1
    elif KL == "k2":
        return difference * difference / 2, difference
    else:
        is_far = -difference > 20.0
        bounded = tl.where(is_far, 20.0, -difference)
        growth = expm1(bounded)
        return growth - bounded, tl.where(is_far, 0.0, -growth)


@kernel_function
def sampler_correction(log_correction, correction_cap, MASK):
    """Sampler correction from old logprob - sampler logprob, or from its sum over a completion."""
    correction = bounded_exp(log_correction)
    zero = 0.0 * correction
    return tl.where(
        correction > correction_cap, zero if MASK else zero + correction_cap, correction
    )


@kernel_function
def token_loss(
    logprob,
    log_ratio,
    token_log_ratio,
    ref_logprob,
    advantage,
    correction,
    clip_low,
    clip_high,
    delta,
    tau_pos,
    tau_neg,
    kl_coef,
    SURROGATE,
    RATIO,
    KL,
    KL_BIAS_CORRECTION,
):
    """Return loss, dloss/dlog_ratio, dloss/dlogprob at a fixed log_ratio, ratio, is_clipped, KL.

    log_ratio: the token's own, or with RATIO "sequence" the mean over its completion.
    KL "none": there is no reference.
    """
    ratio = 0.0 * logprob + 1 if RATIO == "none" else bounded_exp(log_ratio)
    loss, dratio, dlogprob, is_clipped = SURROGATE(
        ratio, logprob, advantage, clip_low, clip_high, delta, tau_pos, tau_neg
    )
    dlog_ratio = tl.where(log_ratio > 20.0, 0.0, dratio * ratio * correction)
    loss *= correction
    dlogprob *= correction
    kl = 0.0 * logprob
    if KL != "none":
        kl, dkl = kl_estimate(logprob, ref_logprob, KL)
        if KL_BIAS_CORRECTION:
            token_ratio = bounded_exp(token_log_ratio)
            dkl = dkl * token_ratio + tl.where(token_log_ratio > 20.0, 0.0, kl * token_ratio)
            kl *= token_ratio
        loss += kl_coef * kl
        dlogprob += kl_coef * dkl
    return loss, dlog_ratio, dlogprob, ratio, is_clipped, kl


def loss_numbers(objective: Objective) -> dict[str, float]:
    """The objective's numbers, as token_loss names them.

    They are floats: Triton would compile a kernel again for whole numbers.
    """
    delta = float("inf") if objective.delta is None else objective.delta
    return dict(
        clip_low=float(objective.clip_low),
        clip_high=float(objective.clip_high),
        delta=float(delta),
        tau_pos=float(objective.tau_pos),
        tau_neg=float(objective.tau_neg),
        kl_coef=float(objective.kl_coef),
    )


def loss_choices(objective: Objective, has_ref: bool) -> dict[str, Any]:
    """The objective's choices, as token_loss names them."""
    return dict(
        SURROGATE=SURROGATES[objective.surrogate],
        RATIO=objective.ratio,
        KL=objective.kl if has_ref else "none",
        KL_BIAS_CORRECTION=objective.kl_bias_correction,
    )
