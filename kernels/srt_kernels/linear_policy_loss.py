"""linear_policy_loss: hidden states, LM head and packed rollouts -> loss, with three GEMMs.

The derivative of a token-level objective by a token's log-prob depends on that log-prob and on what is known before,
so the gradient is formed in the chunk where the logits live: logits, dX, dW, and nothing is computed again in backward,
which only scales what forward saved (dX [M, H] in hidden's dtype, dW [V, H] in weight's). Where it depends on a whole
completion (sequence ratio, or sequence correction without old_logprobs) a pass for the log-probs comes first: four.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .linear_logprob import Grads, Head, head_pass, make_head
from .objective import Objective
from .policy_loss import PolicyLoss, TokenInputs, finish, token_inputs, token_terms


def _needs_whole_rollouts(objective: Objective, inputs: TokenInputs) -> bool:
    return objective.ratio == "sequence" or (objective.correction.startswith("sequence") and inputs.correction is None)


def _active_rows(objective: Objective, inputs: TokenInputs) -> Tensor:
    """[n] int64: the tokens whose loss has a gradient, as far as is known before the log-probs are."""
    active = inputs.advantages != 0
    if inputs.correction is not None:
        active = active & (inputs.correction != 0)
    if objective.kl_coef > 0 or objective.entropy_coef > 0:
        active = torch.ones_like(active)
    elif _needs_whole_rollouts(objective, inputs):
        rollouts = torch.zeros(len(inputs.cu_seqlens), dtype=torch.bool, device=active.device)
        active = rollouts.index_fill_(0, inputs.rollout[active], True)[inputs.rollout]
    return active.nonzero().squeeze(1)


def _dlogprobs(objective: Objective, logprobs: Tensor, inputs: TokenInputs) -> Tensor:
    """dL/dlogprob [n] of tokens, by autograd of the objective itself."""
    with torch.enable_grad():
        leaf = logprobs.detach().requires_grad_()
        loss = (inputs.weights * token_terms(objective, leaf, inputs).losses).sum()
        return torch.autograd.grad(loss, leaf)[0]


def _solve(
    objective: Objective, head: Head, inputs: TokenInputs, wants: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Grads]:
    """Log-probs [n], entropies [n] and the wanted gradients of the loss."""
    h = -objective.entropy_coef * inputs.weights if objective.entropy_coef > 0 else None
    if not any(wants):
        return head_pass(head)
    if _needs_whole_rollouts(objective, inputs):
        logprobs, entropies, _ = head_pass(head)
        g = _dlogprobs(objective, logprobs, inputs)
        index = torch.arange(len(g), device=g.device) if h is not None else g.nonzero().squeeze(1)  # not the clipped

        def known(part, _):
            return g[index[part]], None if h is None else h[index[part]]

        return logprobs, entropies, head_pass(head.select(index), known, wants)[2]
    positions = torch.arange(len(head.targets), device=head.targets.device)

    def formed(part, logprobs):
        return _dlogprobs(objective, logprobs, inputs.select(positions[part])), None if h is None else h[part]

    return head_pass(head, formed, wants)


class _AttachGradients(torch.autograd.Function):
    """A loss whose gradients are known: backward scales them, and leaves them as they are for another backward."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, loss, *grads):
        ctx.save_for_backward(*grads)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        grads = (None if grad is None else grad * dloss for grad in ctx.saved_tensors)
        return *grads, None, None, None, None


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    objective: Objective,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    row_index: Tensor | None = None,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    normalizer: float | Tensor | None = None,
    all_rows: bool = False,
    chunk_rows: int | None = None,
) -> PolicyLoss:
    """Policy-gradient loss of packed completions; differentiable once in hidden, weight and bias.

    hidden, weight, targets, row_index, temperature, bias, softcap, chunk_rows: see linear_logprob. advantages,
    cu_seqlens, objective, the log-probs and normalizer: see policy_loss. Returns fp32 (fp64 for fp64 hidden states).

    Tokens whose loss has no gradient for certain (advantage or correction 0, no KL and no entropy term) are left out
    before the logits: their gradient is exactly zero, their log-prob and entropy are nan, and the statistics are means
    over the others. all_rows computes them too. A loss without such tokens is 0 and still part of the graph.
    Under torch.no_grad one GEMM; with a frozen weight two. Finding the tokens is the one host sync on a GPU.
    """
    head = make_head(hidden, weight, targets, temperature, bias, softcap, row_index, chunk_rows)
    given = {"old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs, "sampler_logprobs": sampler_logprobs}
    inputs = token_inputs(objective, targets, head.weight.dtype, advantages, cu_seqlens, given, normalizer)
    index = None if all_rows else _active_rows(objective, inputs)
    if index is not None and len(index) < len(targets):
        head, inputs = head.select(index), inputs.select(index)
    wants = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, weight, bias))
    logprobs, entropies, (dx, dw, dbias) = _solve(objective, head, inputs, wants)
    with torch.no_grad():
        loss, means = finish(objective, inputs, token_terms(objective, logprobs, inputs), entropies, len(logprobs))
    if any(wants):
        dw = None if dw is None else dw.to(weight.dtype)
        dbias = None if dbias is None else dbias.to(bias.dtype)
        loss = _AttachGradients.apply(hidden, weight, bias, loss, dx, dw, dbias)
    if len(logprobs) < len(targets):
        logprobs, entropies = (
            t.new_full((len(targets),), torch.nan).index_copy_(0, index, t) for t in (logprobs, entropies)
        )
    return PolicyLoss(loss=loss, logprobs=logprobs, entropies=entropies, **means)
