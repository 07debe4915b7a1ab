"""The terms of an objective at n log-probs: losses, gradients and statistics of each token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srt_kernels.core.backend import as_torch, use_triton
from srt_kernels.core.segments import segment_reduce
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.token_inputs import TokenInputs, sampler_corrections
from srt_kernels.objective.token_loss import loss_choices, loss_numbers, token_loss


@dataclass(frozen=True)
class TokenTerms:
    """loss = sum of weights * (losses - entropy_coef * entropies). All are [n]."""

    grad_logprob: Tensor  # derivative of the loss by the token's log-prob
    losses: Tensor
    ratio: Tensor
    clipped: Tensor  # 1 if the ratio was clipped
    kl: Tensor
    correction: Tensor


def token_terms(objective: Objective, logprobs: Tensor, inputs: TokenInputs) -> TokenTerms:
    """The objective at log-probs [n]. Sequence-level quantities need whole rollouts."""
    if use_triton(logprobs):
        # Imported here because Triton is optional.
        from srt_kernels.objective.policy_loss_kernel import policy_terms

        return TokenTerms(*policy_terms(objective, logprobs, inputs))
    return _token_terms_torch(objective, logprobs, inputs)


def _token_terms_torch(objective: Objective, logprobs: Tensor, inputs: TokenInputs) -> TokenTerms:
    dtype = logprobs.dtype
    logprobs = logprobs.double()
    old_logprobs = logprobs if inputs.old_logprobs is None else inputs.old_logprobs
    correction = inputs.correction
    if correction is None:
        correction = sampler_corrections(objective, old_logprobs, inputs)
    token_log_ratio = logprobs - old_logprobs
    log_ratio = token_log_ratio
    if objective.ratio == "sequence":
        log_ratio = _rollout_means(token_log_ratio, inputs)
    choices = loss_choices(objective, has_ref=inputs.ref_logprobs is not None)
    choices["SURROGATE"] = as_torch(choices["SURROGATE"])
    losses, dlog_ratio, dlogprob, ratio, is_clipped, kl = as_torch(token_loss)(
        logprob=logprobs,
        log_ratio=log_ratio,
        token_log_ratio=token_log_ratio,
        ref_logprob=inputs.ref_logprobs,
        advantage=inputs.advantages,
        correction=correction,
        **loss_numbers(objective),
        **choices,
    )
    through_ratio = inputs.weights * dlog_ratio
    if objective.ratio == "sequence":
        through_ratio = _rollout_means(through_ratio, inputs)
    grad_logprob = inputs.weights * dlogprob + through_ratio
    terms = (grad_logprob, losses, ratio, is_clipped, kl, correction)
    return TokenTerms(*[term.to(dtype) for term in terms])


def _rollout_means(values: Tensor, inputs: TokenInputs) -> Tensor:
    """[n] for each token the mean of values [n] over its rollout."""
    lengths = inputs.cu_seqlens.diff().clamp(min=1)
    sums = segment_reduce(values, "sum", inputs.cu_seqlens)
    return (sums / lengths)[inputs.rollout_index]


def reduce_terms(
    objective: Objective, inputs: TokenInputs, terms: TokenTerms, entropies: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss, summed in fp64, and [5] fp64: means of ratio, clipped, kl and correction, and n."""
    losses = terms.losses
    count = len(losses)
    if objective.entropy_coef > 0:
        assert entropies is not None
        losses = losses - objective.entropy_coef * entropies
    loss = (inputs.weights * losses).double().sum().to(losses.dtype)
    statistics = torch.stack([terms.ratio, terms.clipped, terms.kl, terms.correction]).double()
    means = statistics.sum(1) / max(1, count)
    return loss, torch.cat([means, means.new_full((1,), count)])
