"""policy_loss: an objective's loss from log-probs that are already computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srt_kernels.core.autograd import refuse_tangents, scale_saved_gradients
from srt_kernels.core.backend import on_device_of_tensors
from srt_kernels.core.checks import check_tensor, check_tensors, expect
from srt_kernels.objective.finite import check_finite_on_cpu, token_values
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.token_inputs import (
    ROLLOUT_SCHEMA,
    check_objective,
    make_token_inputs,
    split_normalizer,
)
from srt_kernels.objective.token_terms import reduce_terms, token_terms


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """A loss and its statistics. Means are over the `rows` computed tokens; 0 if there are none."""

    loss: Tensor  # scalar, differentiable
    logprobs: Tensor  # [N] detached, nats; nan for tokens that were not computed
    entropies: Tensor | None  # [N] detached, nats; nan as logprobs; None if the op had none
    ratio: Tensor  # mean of the ratio that the surrogate saw
    clip_fraction: (
        Tensor  # fraction of tokens without gradient by clip or delta, or capped by cispo
    )
    kl: Tensor  # mean KL estimate to the reference; 0 without ref_logprobs
    correction: Tensor  # mean sampler correction
    rows: Tensor  # int64, tokens that were computed, at most N

    @classmethod
    def from_outputs(
        cls, loss: Tensor, means: Tensor, logprobs: Tensor, entropies: Tensor | None
    ) -> PolicyLoss:
        """From what an op returns. means [5] as in reduce_terms."""
        ratio, clip_fraction, kl, correction, rows = means.detach().unbind()
        return cls(
            loss=loss,
            logprobs=logprobs.detach(),
            entropies=None if entropies is None else entropies.detach(),
            ratio=ratio.float(),
            clip_fraction=clip_fraction.float(),
            kl=kl.float(),
            correction=correction.float(),
            rows=rows.long(),
        )


@torch.library.custom_op(
    "srt_kernels::policy_loss",
    mutates_args=(),
    schema=f"(Tensor logprobs, Tensor? entropies, {ROLLOUT_SCHEMA})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
@on_device_of_tensors
def _forward(
    logprobs: Tensor, entropies: Tensor | None, *rollouts
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss, its statistics [5], and the gradients by logprobs [N] and entropies [N]."""
    check_tensor("logprobs", logprobs, (None,), "float", logprobs.device)
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    objective, inputs = make_token_inputs(logprobs, dtype, *rollouts)
    if entropies is not None:
        check_tensor("entropies", entropies, (len(logprobs),), "float", logprobs.device)
    has_entropies = objective.entropy_coef <= 0 or entropies is not None
    expect(has_entropies, "entropies", "a tensor with entropy_coef above 0", None)
    values = {"logprobs": logprobs} | token_values(inputs)
    if entropies is not None and objective.entropy_coef > 0:
        values["entropies"] = entropies
    check_finite_on_cpu(values, inputs)
    terms = token_terms(objective, logprobs.to(dtype), inputs)
    loss, means = reduce_terms(objective, inputs, terms, entropies)
    grad_entropies = (-objective.entropy_coef * inputs.weights).to(dtype)
    return loss, means, terms.grad_logprob.clone(), grad_entropies


@_forward.register_fake
def _fake_forward(logprobs: Tensor, *_) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    loss = logprobs.new_empty((), dtype=dtype)
    means = logprobs.new_empty(5, dtype=torch.float64)
    grad_logprobs = logprobs.new_empty(logprobs.shape, dtype=dtype)
    grad_entropies = logprobs.new_empty(logprobs.shape, dtype=dtype)
    return loss, means, grad_logprobs, grad_entropies


scale_saved_gradients(_forward, leaves=(0, 1), first_output=2)


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
    """Loss of packed completions from the log-probs of their tokens.

    Differentiable once in logprobs and entropies. Log-probs are in nats, fp16, bf16, fp32 or fp64.
    There is no synchronisation with the host on a GPU.

    Args:
        logprobs: [N].
        advantages: [R], or [N] per token. [R] wins if R = N.
        cu_seqlens: [R+1] int32 or int64.
        objective: what to minimise.
        old_logprobs: [N] of the policy that the ratio is against. None: on policy, the ratio is
            exactly 1.
        ref_logprobs: [N] of the KL's reference. Needed with a kl_coef above 0.
        sampler_logprobs: [N] for the correction. Needed with a correction.
        entropies: [N]. Needed with an entropy_coef above 0.
        normalizer: what the loss is divided by: tokens (reduction "token") or completions (others)
            of the global batch. None: those of this call (loss_normalizer). The losses of
            micro-batches that get the global one sum to the loss of the whole batch. May be 0 if
            there are no tokens: the loss is 0.

    Raises:
        ValueError: a bad shape, dtype, device, offset or normalizer, or a missing tensor. On a CPU
            also the first nan or inf among log-probs, advantages, and entropies that the loss
            needs. On a GPU, where looking would synchronise with the host, nan and inf make the
            loss nan or inf, as does a normalizer in a tensor that is not above 0.
        RuntimeError: a tensor with a forward-mode tangent.
    """
    check_objective(objective)
    tensors = dict(
        logprobs=logprobs,
        entropies=entropies,
        advantages=advantages,
        cu_seqlens=cu_seqlens,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs,
    )
    check_tensors(None, **tensors)
    refuse_tangents(**tensors)
    number, tensor = split_normalizer(normalizer)
    loss, means, *_ = _forward(
        logprobs,
        entropies,
        advantages,
        cu_seqlens,
        objective.json,
        old_logprobs,
        ref_logprobs,
        sampler_logprobs,
        number,
        tensor,
    )
    return PolicyLoss.from_outputs(loss, means, logprobs, entropies)
