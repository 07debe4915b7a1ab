"""policy_loss: the objectives of objective.py from log-probs that someone else computed.

Also home of what linear_policy_loss asks of an objective inside its chunks: losses and gradients of n log-probs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from srt_kernels.core.backend import on_its_device, on_torch, use_triton
from srt_kernels.core.checks import check_offsets, check_tensor, check_tensors, expect
from srt_kernels.core.segments import segment_ids, segment_reduce
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.token_loss import SURROGATES, correction_of
from srt_kernels.objective.token_loss import token_terms as terms_of_token

TERMS = ("grads", "losses", "ratio", "clipped", "kl", "correction")
# What an op's schema says of the rollouts; token_inputs takes them in this order.
ROLLOUTS = """Tensor advantages, Tensor cu_seqlens, str objective, Tensor? old_logprobs, Tensor? ref_logprobs,
Tensor? sampler_logprobs, float? number, Tensor? normalizer"""


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """A loss and what it was made of. Means are over the `rows` tokens that were computed, 0 where there are none."""

    loss: Tensor  # scalar, differentiable
    logprobs: Tensor  # [N] detached, nats; nan where the row was not computed
    entropies: (
        Tensor | None
    )  # [N] detached, nats; nan where the row was not computed, None where nobody gave them
    ratio: Tensor  # mean of the ratio that the surrogate saw
    clip_fraction: Tensor  # part of the tokens whose ratio clip or delta left without gradient, or cispo capped
    kl: Tensor  # mean KL estimate to the reference; 0 without ref_logprobs
    correction: Tensor  # mean sampler correction
    rows: Tensor  # int64, tokens that were computed, at most N

    @classmethod
    def of(
        cls, loss: Tensor, means: Tensor, logprobs: Tensor, entropies: Tensor | None
    ) -> PolicyLoss:
        """From what an op gives; means [5] as `finish` has them."""
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

    def select(self, index: Tensor | slice) -> TokenInputs:
        """The tokens at `index`, which increases. Sequence-level quantities need whole rollouts or none of them."""
        parts = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "cu_seqlens"
        }
        parts = {name: None if part is None else part[index] for name, part in parts.items()}
        if isinstance(index, slice):
            offsets = (self.cu_seqlens - index.start).clamp(0, index.stop - index.start)
        else:
            offsets = torch.searchsorted(index, self.cu_seqlens.long())
        return TokenInputs(cu_seqlens=offsets, **parts)


@dataclass(frozen=True, kw_only=True)
class TokenTerms:
    """What an objective says of n tokens. loss = sum of weights * (losses - entropy_coef * entropies)."""

    grads: Tensor  # [n], derivative of the loss by the token's log-prob
    losses: Tensor  # [n]
    ratio: Tensor  # [n]
    clipped: Tensor  # [n], 1 where it was
    kl: Tensor  # [n]
    correction: Tensor  # [n]


def _corrections(o: Objective, old: Tensor, inputs: TokenInputs) -> Tensor:
    """[n] sampler corrections, capped. old is without gradient, and so are they."""
    difference = old - inputs.sampler
    if o.correction.startswith("sequence"):
        difference = segment_reduce(difference, "sum", inputs.cu_seqlens)[inputs.rollout]
    return on_torch(correction_of)(difference, o.correction_cap, o.correction.endswith("mask"))


def token_terms(objective: Objective, logprobs: Tensor, inputs: TokenInputs) -> TokenTerms:
    """The objective at n log-probs. Sequence-level quantities need whole rollouts."""
    if use_triton(logprobs):
        from srt_kernels.objective.policy_loss_kernel import policy_terms

        return TokenTerms(
            **dict(zip(TERMS, policy_terms(objective, logprobs, inputs), strict=True))
        )
    o, dtype, logprobs = objective, logprobs.dtype, logprobs.double()
    old = logprobs if inputs.old is None else inputs.old
    log_ratio = token_log_ratio = logprobs - old
    lengths = inputs.cu_seqlens.diff().clamp(min=1)
    if o.ratio == "sequence":
        log_ratio = (segment_reduce(token_log_ratio, "sum", inputs.cu_seqlens) / lengths)[
            inputs.rollout
        ]
    correction = (
        inputs.correction if inputs.correction is not None else _corrections(o, old, inputs)
    )
    losses, dlog_ratio, dlogprob, ratio, clipped, kl = on_torch(terms_of_token)(
        logprobs,
        log_ratio,
        token_log_ratio,
        inputs.ref,
        inputs.advantages,
        correction,
        o.clip_low,
        o.clip_high,
        torch.inf if o.delta is None else o.delta,
        o.tau_pos,
        o.tau_neg,
        o.kl_coef,
        on_torch(SURROGATES[o.surrogate]),
        o.ratio,
        "none" if inputs.ref is None else o.kl,
        o.kl_bias_correction,
    )
    through_ratio = inputs.weights * dlog_ratio
    if o.ratio == "sequence":
        through_ratio = (segment_reduce(through_ratio, "sum", inputs.cu_seqlens) / lengths)[
            inputs.rollout
        ]
    terms = (inputs.weights * dlogprob + through_ratio, losses, ratio, clipped, kl, correction)
    return TokenTerms(**dict(zip(TERMS, (term.to(dtype) for term in terms), strict=True)))


def token_weights(
    objective: Objective, cu_seqlens: Tensor, rollout: Tensor, normalizer: float | Tensor | None
):
    """[N] fp64: the reduction as a weight of each token, which does not depend on what else is in the call."""
    if normalizer is None:
        normalizer = max(1, len(rollout) if objective.reduction == "token" else len(cu_seqlens) - 1)
    weights = torch.ones(len(rollout), dtype=torch.float64, device=rollout.device) / normalizer
    if objective.reduction == "sequence":
        return weights / cu_seqlens.diff()[rollout]
    return weights / objective.max_length if objective.reduction == "fixed" else weights


def split_normalizer(normalizer: float | Tensor | None) -> tuple[float | None, Tensor | None]:
    """A number or a tensor, in an argument of its own each."""
    is_tensor = isinstance(normalizer, Tensor)
    fits = normalizer is None or is_tensor or isinstance(normalizer, int | float)
    expect(fits, "normalizer", "a number, a tensor or None", type(normalizer).__name__)
    return None if is_tensor or normalizer is None else float(
        normalizer
    ), normalizer if is_tensor else None


def token_inputs(
    tokens: Tensor,
    dtype: torch.dtype,
    advantages: Tensor,
    cu_seqlens: Tensor,
    objective: str,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    number: float | None,
    normalizer: Tensor | None,
) -> tuple[Objective, TokenInputs]:
    """Check what a loss over `tokens` [N] was given about its rollouts, and bring it to one value per token."""
    objective = Objective.from_json(objective)
    logprobs = {
        "old_logprobs": old_logprobs,
        "ref_logprobs": ref_logprobs,
        "sampler_logprobs": sampler_logprobs,
    }
    _check_rollouts(objective, tokens, advantages, cu_seqlens, logprobs, number, normalizer)
    total, rollouts = len(tokens), len(cu_seqlens) - 1
    rollout = segment_ids(cu_seqlens, total)
    per_rollout = advantages[rollout] if len(advantages) == rollouts else advantages
    # In fp64 outside the kernels: see normalise in head.py.
    dtype = torch.float32 if use_triton(tokens) and dtype == torch.float32 else torch.float64
    old, ref, sampler = (None if t is None else t.detach().to(dtype) for t in logprobs.values())
    inputs = TokenInputs(
        advantages=per_rollout.detach().to(dtype),
        weights=token_weights(
            objective, cu_seqlens, rollout, normalizer if number is None else number
        ).to(dtype),
        rollout=rollout,
        cu_seqlens=cu_seqlens,
        old=old,
        ref=ref,
        sampler=sampler,
        correction=torch.ones(total, dtype=dtype, device=rollout.device)
        if objective.correction == "none"
        else None,
    )
    if objective.correction != "none" and old is not None:
        inputs = replace(inputs, correction=_corrections(objective, old, inputs))
    return objective, inputs


def check_objective(objective: Objective) -> None:
    expect(isinstance(objective, Objective), "objective", "an Objective", type(objective).__name__)


def _check_rollouts(
    objective, tokens, advantages, cu_seqlens, logprobs, number, normalizer
) -> None:
    total, device = len(tokens), tokens.device
    check_offsets("cu_seqlens", cu_seqlens, total, device)
    check_tensor("advantages", advantages, (None,), "float", device)
    sizes = (len(cu_seqlens) - 1, total)
    expected = f"shape [{sizes[0]}] (rollouts) or [{sizes[1]}] (tokens)"
    expect(len(advantages) in sizes, "advantages", expected, len(advantages))
    for name, tensor in logprobs.items():
        if tensor is not None:
            check_tensor(name, tensor, (total,), "float", device)
    if objective.kl_coef > 0:
        expect(
            logprobs["ref_logprobs"] is not None,
            "ref_logprobs",
            "a tensor with kl_coef above 0",
            None,
        )
    if objective.correction != "none":
        expected = f"a tensor with correction {objective.correction!r}"
        expect(logprobs["sampler_logprobs"] is not None, "sampler_logprobs", expected, None)
    if normalizer is not None:
        expect(
            normalizer.dim() == 0,
            "normalizer",
            "a number or a tensor without dimensions",
            list(normalizer.shape),
        )
        expect(normalizer.device == device, "normalizer", f"device {device}", normalizer.device)
        number = float(normalizer) if device.type == "cpu" else None
    expect(number is None or number > 0, "normalizer", "more than 0", number)


def finish(
    objective: Objective, inputs: TokenInputs, terms: TokenTerms, entropies: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss, summed in fp64, and [5] fp64: the means MEANS and the number of tokens."""
    losses, rows = terms.losses, len(terms.losses)
    if objective.entropy_coef > 0:
        losses = losses - objective.entropy_coef * entropies
    loss = (inputs.weights * losses).double().sum().to(losses.dtype)
    terms = torch.stack([terms.ratio, terms.clipped, terms.kl, terms.correction]).double()
    count = torch.full((1,), rows, dtype=torch.float64, device=loss.device)
    return loss, torch.cat([terms.sum(1) / max(1, rows), count])


@torch.library.custom_op(
    "srt_kernels::policy_loss",
    mutates_args=(),
    schema=f"(Tensor logprobs, Tensor? entropies, {ROLLOUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
@on_its_device
def _forward(
    logprobs: Tensor, entropies: Tensor | None, *rollouts
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> loss, means, dlogprobs [N], dentropies [N]."""
    check_tensor("logprobs", logprobs, (None,), "float", logprobs.device)
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    objective, inputs = token_inputs(logprobs, dtype, *rollouts)
    if entropies is not None:
        check_tensor("entropies", entropies, (len(logprobs),), "float", logprobs.device)
    needed = objective.entropy_coef > 0
    expect(
        not needed or entropies is not None, "entropies", "a tensor with entropy_coef above 0", None
    )
    terms = token_terms(objective, logprobs.to(dtype), inputs)
    loss, means = finish(objective, inputs, terms, entropies)
    return loss, means, terms.grads.clone(), (-objective.entropy_coef * inputs.weights).to(dtype)


@_forward.register_fake
def _(logprobs, *_):
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    loss, means = logprobs.new_empty((), dtype=dtype), logprobs.new_empty(5, dtype=torch.float64)
    return loss, means, *(logprobs.new_empty(logprobs.shape, dtype=dtype) for _ in range(2))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*output[2:])
    ctx.dtypes = [t if t is None else t.dtype for t in inputs[:2]]
    ctx.inputs = len(inputs)
    ctx.set_materialize_grads(False)


def differentiable_once(gradients: tuple) -> None:
    """Of the outputs that forward saved for backward: one that has a gradient was differentiated twice."""
    if any(gradient is not None for gradient in gradients):
        raise RuntimeError(
            "the loss is differentiable once: its gradient is formed in forward and has none of its own"
        )


def _differentiate(ctx, dloss, *others):
    differentiable_once(others)
    grads = [None] * ctx.inputs
    if dloss is not None:
        for place, saved in enumerate(ctx.saved_tensors):
            if ctx.needs_input_grad[place]:
                grads[place] = (saved * dloss).to(ctx.dtypes[place])
    return tuple(grads)


_forward.register_autograd(_differentiate, setup_context=_save)


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
    """Loss of packed completions from the log-probs [N] of their tokens; differentiable once in logprobs and entropies.

    advantages [R], or [N] per token (R wins where they are equal); cu_seqlens [R+1] int32; old_logprobs [N] of the
    policy that the ratio is against (None: on policy, the ratio is exactly 1); ref_logprobs [N] for the KL;
    sampler_logprobs [N] for the correction; entropies [N], needed with an entropy_coef above 0. All nats, any float.
    normalizer: the tokens (reduction "token") or completions (others) of the global batch, by default those of this
    call; micro-batches that are given the global one sum to the loss of the whole batch. Raises ValueError.
    """
    check_objective(objective)
    check_tensors(
        logprobs=logprobs,
        entropies=entropies,
        advantages=advantages,
        cu_seqlens=cu_seqlens,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs,
    )
    loss, means, *_ = _forward(
        logprobs,
        entropies,
        advantages,
        cu_seqlens,
        objective.json,
        old_logprobs,
        ref_logprobs,
        sampler_logprobs,
        *split_normalizer(normalizer),
    )
    return PolicyLoss.of(
        loss, means, logprobs.detach(), None if entropies is None else entropies.detach()
    )
