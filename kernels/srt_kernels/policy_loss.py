"""policy_loss: the objectives of objective.py from log-probs that someone else computed.

Also home of the per-token arithmetic that linear_policy_loss runs inside its chunks: one function of [n] log-probs,
whose gradient autograd takes there as here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .group_advantage import check_offsets, check_tensor, expect, segment_ids, segment_reduce
from .objective import Objective

MAX_LOG_RATIO = 20.0  # exp of more says nothing but "far off", and ends in inf


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """A loss and what it was made of. Means are over the `rows` tokens that were computed, 0 where there are none."""

    loss: Tensor  # scalar, differentiable
    logprobs: Tensor  # [N] detached, nats; nan where the row was not computed
    entropies: Tensor | None  # [N] detached, nats; nan where the row was not computed, None where nobody gave them
    ratio: Tensor  # mean of the ratio that the surrogate saw
    clip_fraction: Tensor  # part of the tokens whose ratio clip or delta left without gradient, or cispo capped
    kl: Tensor  # mean KL estimate to the reference; 0 without ref_logprobs
    correction: Tensor  # mean sampler correction
    rows: int  # tokens that were computed, at most N


@dataclass(frozen=True, kw_only=True)
class TokenInputs:
    """What is known of each of n tokens before its log-prob is."""

    advantages: Tensor  # [n]
    weights: Tensor  # [n], what the reduction makes of the token
    rollout: Tensor  # [n] int64, which rollout the token is of; never decreases
    cu_seqlens: Tensor  # [R+1]
    old: Tensor | None  # [n] log-probs; None on policy, where they are the current ones
    ref: Tensor | None  # [n] log-probs
    sampler: Tensor | None  # [n] log-probs; None where the objective has no correction
    correction: Tensor | None  # [n]; None where it has to wait for the log-probs

    def select(self, index: Tensor) -> TokenInputs:
        """The tokens at `index`, which increases. Sequence-level quantities need whole rollouts or none of them."""
        parts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "cu_seqlens"}
        parts = {name: None if part is None else part[index] for name, part in parts.items()}
        return TokenInputs(cu_seqlens=torch.searchsorted(index, self.cu_seqlens.long()), **parts)


@dataclass(frozen=True, kw_only=True)
class TokenTerms:
    """What an objective says of n tokens. loss = sum of weights * (losses - entropy_coef * entropies)."""

    losses: Tensor  # [n], differentiable in the log-probs
    ratio: Tensor  # [n]
    clipped: Tensor  # [n] bool
    kl: Tensor  # [n]
    correction: Tensor  # [n]


def _clip(o: Objective, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    bound = torch.inf if o.delta is None else o.delta  # binds where A < 0 only: delta > 1 + clip_high
    clamped = ratio.clamp(1 - o.clip_low, 1 + o.clip_high)
    losses = -torch.minimum(ratio.clamp(max=bound) * advantages, clamped * advantages)
    gains, shrinks = advantages > 0, advantages < 0
    clipped = (gains & (ratio > 1 + o.clip_high)) | (shrinks & ((ratio < 1 - o.clip_low) | (ratio > bound)))
    return losses, clipped


def _cispo(o: Objective, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    return -ratio.detach().clamp(max=o.clip_high) * advantages * logprobs, ratio > o.clip_high


def _sapo(o: Objective, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    tau = torch.where(advantages > 0, o.tau_pos, o.tau_neg).to(ratio.dtype)
    return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages, torch.zeros_like(ratio, dtype=torch.bool)


def _reinforce(o: Objective, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    return -ratio.detach() * advantages * logprobs, torch.zeros_like(ratio, dtype=torch.bool)


SURROGATES = {"clip": _clip, "cispo": _cispo, "sapo": _sapo, "reinforce": _reinforce}


def _kl(objective: Objective, logprobs: Tensor, ref: Tensor) -> Tensor:
    if objective.kl == "k1":
        return logprobs - ref
    if objective.kl == "k2":
        return (logprobs - ref).square() / 2
    difference = (ref - logprobs).clamp(max=MAX_LOG_RATIO)
    return difference.expm1() - difference


def _corrections(o: Objective, old: Tensor, sampler: Tensor, rollout: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[n] sampler corrections, capped. old is without gradient, and so are they."""
    difference = old - sampler
    if o.correction.startswith("sequence"):
        difference = segment_reduce(difference, "sum", cu_seqlens)[rollout].to(difference.dtype)
    corrections = difference.clamp(max=MAX_LOG_RATIO).exp()
    if o.correction.endswith("truncate"):
        return corrections.clamp(max=o.correction_cap)
    return corrections.where(corrections <= o.correction_cap, 0.0)


def token_terms(objective: Objective, logprobs: Tensor, inputs: TokenInputs) -> TokenTerms:
    """The objective at n log-probs, token by token."""
    old = logprobs.detach() if inputs.old is None else inputs.old
    log_ratio = logprobs - old
    token_ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    ratio = token_ratio
    if objective.ratio == "none":
        ratio = torch.ones_like(logprobs)
    elif objective.ratio == "sequence":
        lengths = inputs.cu_seqlens.diff().clamp(min=1)
        means = segment_reduce(log_ratio, "sum", inputs.cu_seqlens) / lengths
        ratio = means.clamp(max=MAX_LOG_RATIO).exp()[inputs.rollout].to(logprobs.dtype)
    losses, clipped = SURROGATES[objective.surrogate](objective, ratio, inputs.advantages, logprobs)
    correction = inputs.correction
    if correction is None:
        correction = _corrections(objective, old, inputs.sampler, inputs.rollout, inputs.cu_seqlens)
    losses, kl = losses * correction, torch.zeros_like(logprobs)
    if inputs.ref is not None:
        kl = _kl(objective, logprobs, inputs.ref)
        kl = kl * token_ratio if objective.kl_bias_correction else kl
    if objective.kl_coef > 0:
        losses = losses + objective.kl_coef * kl
    return TokenTerms(losses=losses, ratio=ratio, clipped=clipped, kl=kl, correction=correction)


def token_weights(objective: Objective, cu_seqlens: Tensor, rollout: Tensor, normalizer: float | Tensor | None):
    """[N] fp64: the reduction as a weight of each token, which does not depend on what else is in the call."""
    if normalizer is None:
        normalizer = max(1, len(rollout) if objective.reduction == "token" else len(cu_seqlens) - 1)
    weights = torch.ones(len(rollout), dtype=torch.float64, device=rollout.device) / normalizer
    if objective.reduction == "sequence":
        return weights / cu_seqlens.diff()[rollout]
    return weights / objective.max_length if objective.reduction == "fixed" else weights


def token_inputs(
    objective: Objective,
    tokens: Tensor,
    dtype: torch.dtype,
    advantages: Tensor,
    cu_seqlens: Tensor,
    logprobs: dict[str, Tensor | None],
    normalizer: float | Tensor | None,
) -> TokenInputs:
    """Check what a loss over `tokens` [N] was given about its rollouts, and bring it to one value per token.

    logprobs: old_logprobs, ref_logprobs and sampler_logprobs by name.
    """
    _check_rollouts(objective, tokens, advantages, cu_seqlens, logprobs, normalizer)
    total = len(tokens)
    rollout = segment_ids(cu_seqlens, total)
    old, ref, sampler = (None if t is None else t.detach().to(dtype) for t in logprobs.values())
    correction = None
    if objective.correction == "none":
        correction = torch.ones(total, dtype=dtype, device=rollout.device)
    elif old is not None:
        correction = _corrections(objective, old, sampler, rollout, cu_seqlens)
    per_rollout = len(advantages) == len(cu_seqlens) - 1
    return TokenInputs(
        advantages=(advantages[rollout] if per_rollout else advantages).detach().to(dtype),
        weights=token_weights(objective, cu_seqlens, rollout, normalizer).to(dtype),
        rollout=rollout,
        cu_seqlens=cu_seqlens,
        old=old,
        ref=ref,
        sampler=sampler,
        correction=correction,
    )


def _check_rollouts(objective, tokens, advantages, cu_seqlens, logprobs, normalizer) -> None:
    expect(isinstance(objective, Objective), "objective", "an Objective", type(objective).__name__)
    total, device = len(tokens), tokens.device
    check_offsets("cu_seqlens", cu_seqlens, total, device)
    check_tensor("advantages", advantages, (None,), "float", device)
    sizes = (len(cu_seqlens) - 1, total)
    expect(
        len(advantages) in sizes,
        "advantages",
        f"shape [{sizes[0]}] (rollouts) or [{sizes[1]}] (tokens)",
        len(advantages),
    )
    for name, tensor in logprobs.items():
        if tensor is not None:
            check_tensor(name, tensor, (total,), "float", device)
    if objective.kl_coef > 0:
        expect(logprobs["ref_logprobs"] is not None, "ref_logprobs", "a tensor with kl_coef above 0", None)
    if objective.correction != "none":
        expected = f"a tensor with correction {objective.correction!r}"
        expect(logprobs["sampler_logprobs"] is not None, "sampler_logprobs", expected, None)
    if isinstance(normalizer, Tensor):
        expect(normalizer.dim() == 0, "normalizer", "a number or a tensor without dimensions", list(normalizer.shape))
        expect(normalizer.device == device, "normalizer", f"device {device}", normalizer.device)
    if normalizer is not None and (not isinstance(normalizer, Tensor) or device.type == "cpu"):
        expect(float(normalizer) > 0, "normalizer", "more than 0", normalizer)


def finish(
    objective: Objective, inputs: TokenInputs, terms: TokenTerms, entropies: Tensor | None, rows: int
) -> tuple[Tensor, dict]:
    """The loss, summed in fp64, and the detached means of PolicyLoss."""
    losses = terms.losses
    if objective.entropy_coef > 0:
        losses = losses - objective.entropy_coef * entropies
    loss = (inputs.weights * losses).double().sum().to(losses.dtype)
    means = {
        name: getattr(terms, name).detach().double().sum() / max(1, rows) for name in ("ratio", "kl", "correction")
    }
    means["clip_fraction"] = terms.clipped.double().sum() / max(1, rows)
    return loss, {name: mean.float() for name, mean in means.items()} | {"rows": rows}


def policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    objective: Objective,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    entropies: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> PolicyLoss:
    """Loss of packed completions from the log-probs [N] of their tokens; differentiable in logprobs and entropies.

    advantages [R], or [N] per token (R wins where they are equal); cu_seqlens [R+1] int32; old_logprobs [N] of the
    policy that the ratio is against (None: on policy, the ratio is exactly 1); ref_logprobs [N] for the KL;
    sampler_logprobs [N] for the correction; entropies [N], needed with an entropy_coef above 0. All nats, any float.
    normalizer: the tokens (reduction "token") or completions (others) of the global batch, by default those of this
    call; micro-batches that are given the global one sum to the loss of the whole batch. Raises ValueError.
    """
    check_tensor("logprobs", logprobs, (None,), "float", logprobs.device)
    given = {"old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs, "sampler_logprobs": sampler_logprobs}
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    inputs = token_inputs(objective, logprobs, dtype, advantages, cu_seqlens, given, normalizer)
    if entropies is not None:
        check_tensor("entropies", entropies, (len(logprobs),), "float", logprobs.device)
    expect(
        objective.entropy_coef == 0 or entropies is not None, "entropies", "a tensor with entropy_coef above 0", None
    )
    terms = token_terms(objective, logprobs.to(dtype), inputs)
    loss, means = finish(objective, inputs, terms, entropies, len(logprobs))
    detached = None if entropies is None else entropies.detach()
    return PolicyLoss(loss=loss, logprobs=logprobs.detach(), entropies=detached, **means)
