"""The objective's small part, written once: the loss of a token, and its derivatives, from the token's log-prob.

Triton kernels call these functions on scalars and blocks, the PyTorch path on tensors (jit.py). A new surrogate is one
function here and its row in SURROGATES.
"""

from __future__ import annotations

from srt_kernels.core.backend import shared

try:
    import triton.language as tl
except ImportError:
    tl = None  # on_torch puts its own in place

# Bounds by `where`, not minimum and maximum: those of Triton turn a nan into the bound.
# A surrogate returns loss, dloss/dratio, dloss/dlogprob with the ratio held, and whether the ratio was clipped.


@shared
def clip(ratio, logprob, advantage, clip_low, clip_high, delta, tau_pos, tau_neg):
    over = (advantage > 0) & (ratio > 1 + clip_high)
    under = (advantage < 0) & ((ratio < 1 - clip_low) | (ratio > delta))
    clipped = over | under
    capped = tl.where(ratio > 1 + clip_high, 1 + clip_high, ratio)
    floored = tl.where(ratio < 1 - clip_low, 1 - clip_low, ratio)
    gain = tl.where(advantage > 0, capped, tl.where(ratio > delta, delta, floored))
    return -gain * advantage, tl.where(clipped, 0.0, -advantage), 0.0 * advantage, clipped


@shared
def cispo(ratio, logprob, advantage, clip_low, clip_high, delta, tau_pos, tau_neg):
    slope = -tl.where(ratio > clip_high, clip_high, ratio) * advantage
    return slope * logprob, 0.0 * advantage, slope, ratio > clip_high


@shared
def sapo(ratio, logprob, advantage, clip_low, clip_high, delta, tau_pos, tau_neg):
    zero = 0.0 * advantage
    tau = tl.where(advantage > 0, zero + tau_pos, zero + tau_neg)
    gate = tl.sigmoid(tau * (ratio - 1))
    return -4 / tau * gate * advantage, -4 * gate * (1 - gate) * advantage, zero, ratio < 0


@shared
def reinforce(ratio, logprob, advantage, clip_low, clip_high, delta, tau_pos, tau_neg):
    slope = -ratio * advantage
    return slope * logprob, 0.0 * advantage, slope, ratio < 0


SURROGATES = {"clip": clip, "cispo": cispo, "sapo": sapo, "reinforce": reinforce}


@shared
def bounded_exp(x):
    """exp of a log-ratio, at most exp(20): more says nothing but "far off", and ends in inf."""
    return tl.exp(tl.where(x > 20.0, 20.0, x))


@shared
def expm1(x):
    """exp(x) - 1, by its series to x^12 where the difference would cancel: exact to fp64's rounding for |x| < 0.25."""
    high = 1 + x / 7 * (1 + x / 8 * (1 + x / 9 * (1 + x / 10 * (1 + x / 11 * (1 + x / 12)))))
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * high)))))
    return tl.where(tl.abs(x) < 0.25, series, tl.exp(x) - 1)


@shared
def kl_terms(logprob, ref, KL):
    """KL estimate at a token and its derivative by the log-prob."""
    d = logprob - ref
    if KL == "k1":
        return d, 0.0 * d + 1
    elif KL == "k2":
        return d * d / 2, d
    else:
        q = tl.where(-d > 20.0, 20.0, -d)
        grown = expm1(q)
        return grown - q, tl.where(-d > 20.0, 0.0, -grown)


@shared
def correction_of(log_correction, cap, MASK):
    """Sampler correction from old logprob - sampler logprob (or its sum over a completion)."""
    correction = bounded_exp(log_correction)
    return tl.where(
        correction > cap, 0.0 * correction if MASK else 0.0 * correction + cap, correction
    )


@shared
def token_terms(
    logprob,
    log_ratio,
    token_log_ratio,
    ref,
    advantage,
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
):
    """-> loss, dloss/dlog_ratio, dloss/dlogprob with log_ratio held, ratio, clipped, KL.

    log_ratio is the token's own or its completion's mean (RATIO "token", "sequence"); KL "none": no reference.
    """
    ratio = 0.0 * logprob + 1 if RATIO == "none" else bounded_exp(log_ratio)
    loss, dratio, dlogprob, clipped = surrogate(
        ratio, logprob, advantage, clip_low, clip_high, delta, tau_pos, tau_neg
    )
    dlog_ratio = tl.where(log_ratio > 20.0, 0.0, dratio * ratio * correction)
    loss *= correction
    dlogprob *= correction
    kl = 0.0 * logprob
    if KL != "none":
        kl, dkl = kl_terms(logprob, ref, KL)
        if KL_BIAS_CORRECTION:
            token_ratio = bounded_exp(token_log_ratio)
            dkl = dkl * token_ratio + tl.where(token_log_ratio > 20.0, 0.0, kl * token_ratio)
            kl *= token_ratio
        loss += kl_coef * kl
        dlogprob += kl_coef * dkl
    return loss, dlog_ratio, dlogprob, ratio, clipped, kl
