"""verl's policy losses, computed by srt_kernels.policy_loss.

Written for verl 0.9 (trainer/ppo/core_algos.py). Configs are verl's ActorConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srt_fast.integrations.padded import Packed, completion_means, pack_per_token
from srt_kernels import Objective, policy_loss
from srt_kernels.core.checks import check_values_on_cpu, expect
from srt_kernels.objective.reduction import loss_normalizer

# Ratios are within exp(-20) and exp(20), as in verl. gspo and dro do not bound the log-ratio.
MAX_LOG_RATIO = 20.0


def _clip_bounds(config: Any) -> tuple[float, float]:
    """clip_ratio_low and clip_ratio_high, each clip_ratio where it is None."""
    low = config.clip_ratio_low
    high = config.clip_ratio_high
    default = config.clip_ratio
    return default if low is None else low, default if high is None else high


def _clip(config: Any) -> dict[str, Any]:
    low, high = _clip_bounds(config)
    return {"clip_low": min(low, 1.0), "clip_high": high}  # ratios are positive


def _dual_clip(config: Any) -> dict[str, Any]:
    parts = _clip(config)
    delta = config.clip_ratio_c
    minimum = 1 + parts["clip_high"]
    expected = f"more than 1 + clip_ratio_high = {minimum} with loss_mode srt_vanilla"
    expect(delta > minimum, "clip_ratio_c", expected, delta)
    return parts | {"delta": delta}


def _sapo(config: Any) -> dict[str, Any]:
    return {"surrogate": "sapo", "tau_pos": config.tau_pos, "tau_neg": config.tau_neg}


def _reinforce(config: Any) -> dict[str, Any]:
    return {"ratio": "none", "surrogate": "reinforce"}


def _dro(config: Any) -> dict[str, Any]:
    beta = config.policy_loss.dro_beta
    is_positive = beta is not None and beta > 0
    expected = "a number above 0 with loss_mode srt_dro"
    expect(is_positive, "policy_loss.dro_beta", expected, beta)
    return _reinforce(config) | {"kl": "k2", "kl_coef": beta}  # KL to the old policy


# loss_mode -> the parts of its Objective, from an actor's config. The bounded ratio of cispo has no
# gradient: it multiplies the advantage.
MODES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "vanilla": _dual_clip,
    "gspo": _clip,
    "sapo": _sapo,
    "cispo": _reinforce,
    "gpg": _reinforce,
    "dro": _dro,
}
# loss_agg_mode -> the reduction of the Objective
TOKEN_REDUCTION = {"reduction": "token"}
SUM_REDUCTION = {"reduction": "fixed", "max_length": 1}
AGGREGATIONS: dict[str, dict[str, Any]] = {
    "token-mean": TOKEN_REDUCTION,
    "token-sum": TOKEN_REDUCTION,
    "seq-mean-token-mean": {"reduction": "sequence"},
    "seq-mean-token-sum": SUM_REDUCTION,
    "seq-mean-token-sum-norm": SUM_REDUCTION,
}
# Each mode's default of loss_agg_mode in verl, where it is not token-mean
DEFAULT_AGGREGATIONS = {"gspo": "seq-mean-token-mean", "sapo": "seq-mean-token-mean"}
METRICS = ("actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower")
# The metrics that verl logs for a mode, where it does not log all of METRICS
LOGGED_METRICS: dict[str, tuple[str, ...]] = {"gpg": (), "dro": ("actor/ppo_kl",)}


def objective_of(mode: str, loss_agg_mode: str, config: Any) -> Objective:
    """The Objective that verl's loss `mode` is, with loss_agg_mode and an actor's config.

    These modes have no Objective: dppo_tv, dppo_kl, clip_cov, kl_cov, geo_mean, and bypass_mode,
    which rejects samples. Raises ValueError that names a mode or setting that is not covered.
    """
    expect(mode in MODES, "loss_mode", f"one of {', '.join(MODES)}", repr(mode))
    expected = f"one of {', '.join(AGGREGATIONS)}"
    expect(loss_agg_mode in AGGREGATIONS, "loss_agg_mode", expected, repr(loss_agg_mode))
    expect(config is not None, "config", "verl's ActorConfig", None)
    return Objective(**MODES[mode](config), **AGGREGATIONS[loss_agg_mode])


@dataclass(frozen=True, kw_only=True)
class RatioTerms:
    """Ratios of N tokens to the old policy, and where a mode bounds them. Detached."""

    token_log_ratio: Tensor  # [N] nats
    log_ratio: Tensor  # [N] nats, of the token, or with gspo of its completion: the mean
    ratio: Tensor  # [N] exp(log_ratio)
    bounded: Tensor  # [N] the ratio within the clip bounds

    @classmethod
    def of(cls, mode: str, config: Any, token_log_ratio: Tensor, cu_seqlens: Tensor) -> RatioTerms:
        """token_log_ratio [N], cu_seqlens [R+1]."""
        low, high = _clip_bounds(config)
        if mode not in ("gspo", "dro"):
            token_log_ratio = token_log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        log_ratio = token_log_ratio
        if mode == "gspo":
            log_ratio = completion_means(token_log_ratio, cu_seqlens)
        ratio = log_ratio.exp()
        return cls(
            token_log_ratio=token_log_ratio,
            log_ratio=log_ratio,
            ratio=ratio,
            bounded=ratio.clamp(1 - low, 1 + high),
        )


def masked_policy_loss(
    mode: str,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str,
    config: Any,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """verl's loss `mode`: the loss and the metrics, with verl's values, gradients and names.

    All tensors are [B, T]. config is verl's ActorConfig with its global_batch_info. sapo always
    takes seq-mean-token-mean, as in verl. A loss without any token is 0, where verl has NaN. With a
    negative advantage verl's gspo has no gradient beyond a log-ratio of 10, ours beyond 20.

    Raises ValueError as objective_of does, for a missing count of the global batch with dp_size
    above 1, and for dro with rollout_is_weights: in verl they multiply the penalty too.
    """
    if mode == "sapo":
        loss_agg_mode = "seq-mean-token-mean"
    objective = objective_of(mode, loss_agg_mode, config)
    is_covered = rollout_is_weights is None or mode != "dro"
    expect(is_covered, "rollout_is_weights", "None with loss_mode srt_dro", "a tensor")
    # A loss is linear in the advantages, so they take the rollout weights.
    packed = pack_per_token(response_mask.bool())
    weighted = advantages
    if rollout_is_weights is not None:
        weights = _gather(rollout_is_weights, packed)
        check_values_on_cpu("rollout_is_weights", weights.isfinite(), weights, "finite values")
        weighted = advantages * rollout_is_weights
    logprobs = _gather(log_prob, packed)
    old_logprobs = _gather(old_log_prob, packed)
    terms = RatioTerms.of(mode, config, logprobs.detach() - old_logprobs, packed.cu_seqlens)
    policy_advantages = _gather(weighted, packed)
    if mode == "cispo":
        policy_advantages = policy_advantages * terms.bounded
    # gspo: the token's ratio is its completion's, with a gradient through the token. This is
    # GSPO-token (arXiv 2507.18071, section 4.3).
    ratio_base = logprobs.detach() - terms.log_ratio if mode == "gspo" else old_logprobs
    result = policy_loss(
        logprobs,
        policy_advantages,
        packed.cu_seqlens,
        objective,
        old_logprobs=ratio_base,
        ref_logprobs=old_logprobs if mode == "dro" else None,
        normalizer=_normalizer(
            loss_agg_mode, objective, packed, response_mask.shape[1], **config.global_batch_info
        ),
    )
    # A weight of 0 (IcePop) would hide the sign, so the metrics take advantages without weights.
    token_advantages = _gather(advantages, packed)
    is_clipped = _is_clipped(mode, terms, token_advantages)
    delta = torch.inf if objective.delta is None else objective.delta
    is_dual_clipped = (terms.ratio > delta) & (token_advantages < 0)
    return result.loss, _metrics(mode, terms.token_log_ratio, is_clipped, is_dual_clipped)


def _gather(padded: Tensor, packed: Packed) -> Tensor:
    """[B, T] -> [N]."""
    return padded.flatten()[packed.row_index]


def _normalizer(
    loss_agg_mode: str,
    objective: Objective,
    packed: Packed,
    length: int,
    *,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: float | None = None,
) -> float | Tensor:
    """What verl divides the sums by. length: T. The keywords are verl's global_batch_info.

    If a count is None, this batch is counted. It must be given with dp_size above 1. verl does not
    count completions without tokens.
    """
    if loss_agg_mode == "token-sum":
        return 1 / dp_size
    counts_tokens = loss_agg_mode == "token-mean"
    name = "batch_num_tokens" if counts_tokens else "global_batch_size"
    count = batch_num_tokens if counts_tokens else global_batch_size
    if count is None:
        expect(dp_size == 1, name, f"a number with dp_size {dp_size}", None)
        has_tokens = packed.cu_seqlens.diff() > 0
        count = loss_normalizer(objective, packed.cu_seqlens, keep=has_tokens)
    if loss_agg_mode == "seq-mean-token-sum-norm":
        count = count * (length if loss_scale_factor is None else loss_scale_factor)
    return count / dp_size


def _is_clipped(mode: str, terms: RatioTerms, advantages: Tensor) -> Tensor:
    """[N] bool: the tokens that verl counts as clipped. It counts none for sapo."""
    if mode == "cispo":
        return terms.ratio != terms.bounded
    if mode == "sapo":
        return torch.zeros_like(terms.ratio, dtype=torch.bool)
    is_high = (advantages > 0) & (terms.ratio > terms.bounded)
    is_low = (advantages < 0) & (terms.ratio < terms.bounded)
    return is_high | is_low


def _metrics(
    mode: str, log_ratio: Tensor, is_clipped: Tensor, is_dual_clipped: Tensor
) -> dict[str, float]:
    """What verl logs for a mode. All [N]. Synchronises with the host once.

    is_dual_clipped: where the dual clip removed the gradient.
    """
    values = (is_clipped, -log_ratio, is_dual_clipped)
    sums = torch.stack([value.sum(dtype=torch.float64) for value in values])
    means = (sums / max(1, len(log_ratio))).tolist()
    all_metrics: dict[str, float] = dict(zip(METRICS, means, strict=True))
    return {name: all_metrics[name] for name in LOGGED_METRICS.get(mode, METRICS)}
