"""linear_policy_loss: hidden states, LM head and packed rollouts -> loss, with three GEMMs.

The derivative of a token-level objective by a token's log-prob depends on that log-prob and on what
is known before. So the gradient is formed in the chunk that has the logits: logits, dX, dW.
Backward computes nothing again. It scales what forward saved (dX [M, H] in hidden's dtype, dW [V,
H] in weight's).

If the derivative depends on a whole completion (sequence ratio, or sequence correction without
old_logprobs), chunks hold whole completions. A completion that is longer than a chunk has a pass
for its log-probs first: four GEMMs for that one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from srt_kernels.core.autograd import scale_saved_gradients
from srt_kernels.core.backend import on_device_of_tensors
from srt_kernels.core.checks import check_tensors
from srt_kernels.core.segments import segment_reduce
from srt_kernels.lm_head.gradient_sources import needs_whole_rollouts
from srt_kernels.lm_head.head_gradients import LEAVES, HeadGradients, empty_gradients, leaf_dtypes
from srt_kernels.lm_head.lm_head import (
    HEAD_SCHEMA,
    LMHead,
    check_finite,
    check_settings,
    group_name,
    make_head,
)
from srt_kernels.lm_head.passes import objective_pass
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.policy_loss import PolicyLoss
from srt_kernels.objective.token_inputs import (
    ROLLOUT_SCHEMA,
    TokenInputs,
    check_objective,
    make_token_inputs,
    split_normalizer,
)
from srt_kernels.objective.token_terms import reduce_terms, token_terms

HEAD_ARGUMENTS = 9  # number of arguments in HEAD_SCHEMA
ROWS_OF_A_CHECK = 1 << 13  # hidden rows that are checked for nan and inf at a time


def _saved_dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[torch.dtype]:
    """Types of the saved gradients: those of the leaves, but fp32 for fp16.

    In fp16 the gradients of a mean over many tokens would vanish before backward multiplies them by
    a gradient scaler's factor.
    """
    return [
        torch.float32 if dtype == torch.float16 else dtype
        for dtype in leaf_dtypes(hidden, weight, bias)
    ]


def _largest_gradient(objective: Objective, inputs: TokenInputs) -> Tensor:
    """0-dim, about the largest |dL/dlogprob|; 1 without tokens."""
    coefficients = objective.entropy_coef + objective.kl_coef
    sizes = inputs.weights * (inputs.advantages.abs() + coefficients)
    return sizes.max() if len(sizes) else sizes.new_ones(())


def _scatter(values: Tensor, index: Tensor, total: int) -> Tensor:
    """[total] with values [n] at index [n] and nan elsewhere."""
    return values.new_full((total,), torch.nan).index_copy_(0, index, values)


def _active_tokens(objective: Objective, inputs: TokenInputs) -> Tensor:
    """[N] bool: tokens whose loss has a gradient, as far as is known before their log-probs."""
    is_active = inputs.advantages != 0
    if inputs.correction is not None:
        is_active = is_active & (inputs.correction != 0)
    if objective.kl_coef > 0 or objective.entropy_coef > 0:
        return torch.ones_like(is_active)
    if needs_whole_rollouts(objective, inputs):
        has_active = segment_reduce(is_active, "max", inputs.cu_seqlens) > 0
        return has_active[inputs.rollout_index]
    return is_active


def _active_index(is_active: Tensor, head: LMHead) -> Tensor:
    """[n] int64 positions of the active tokens.

    On a GPU this is the one host sync. It brings the number of active tokens, and raises ValueError
    if their hidden rows have nan or inf.
    """
    if not is_active.is_cuda or len(is_active) == 0:
        return is_active.nonzero().squeeze(1)
    is_finite = torch.cat([rows.isfinite().all(1) for rows in head.hidden.split(ROWS_OF_A_CHECK)])
    is_bad = ~is_finite if head.row_index is None else ~is_finite[head.row_index]
    is_bad = is_active & is_bad
    figures = torch.stack([is_active.sum(), is_bad.sum(), is_bad.long().argmax()])
    count, bad_count, first_bad = figures.tolist()
    if bad_count:
        raise ValueError(
            f"hidden: expected finite values, got nan or inf in the hidden row of token {first_bad}"
        )
    return is_active.nonzero_static(size=count).squeeze(1)


@torch.library.custom_op(
    "srt_kernels::linear_policy_loss",
    mutates_args=(),
    schema=f"({HEAD_SCHEMA}, {ROLLOUT_SCHEMA}, bool all_rows, bool[] needs_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
@on_device_of_tensors
def _forward(*arguments) -> tuple[Tensor, ...]:
    """Return the loss, its statistics [5], log-probs [N], entropies [N], dX, dW and dbias.

    Gradients that are not needed are empty.
    """
    *rollouts, all_rows, needs_grad = arguments[HEAD_ARGUMENTS:]
    head = make_head(*arguments[:HEAD_ARGUMENTS])
    hidden, weight, targets, bias = arguments[:4]
    objective, inputs = make_token_inputs(targets, head.dtype, *rollouts)
    if all_rows:
        is_active = torch.ones_like(targets, dtype=torch.bool)
    else:
        is_active = _active_tokens(objective, inputs)
    index = None
    if is_active.is_cuda or not all_rows:
        index = _active_index(is_active, head)
    if index is not None and len(index) < len(targets):
        head = head.select(index)
        inputs = inputs.select(index)
    dtypes = _saved_dtypes(hidden, weight, bias)
    gradients = None
    if any(needs_grad):
        largest = _largest_gradient(objective, inputs)
        gradients = HeadGradients(head, needs_grad, largest, dtypes)
    logprobs, entropies = objective_pass(objective, head, inputs, gradients)
    if not logprobs.is_cuda:
        check_finite(head, logprobs)
    terms = token_terms(objective, logprobs, inputs)
    loss, means = reduce_terms(objective, inputs, terms, entropies)
    if index is not None and len(index) < len(targets):
        logprobs = _scatter(logprobs, index, len(targets))
        entropies = _scatter(entropies, index, len(targets))
    if gradients is None:
        leaf_gradients = empty_gradients(hidden, weight, bias, needs_grad, dtypes)
    else:
        leaf_gradients = gradients.results(head)
    return loss, means, logprobs, entropies, *leaf_gradients


@_forward.register_fake
def _fake_forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *arguments
) -> tuple[Tensor, ...]:
    needs_grad = arguments[-1]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    loss = hidden.new_empty((), dtype=dtype)
    means = hidden.new_empty(5, dtype=torch.float64)
    logprobs = targets.new_empty(targets.shape, dtype=dtype)
    entropies = torch.empty_like(logprobs)
    dtypes = _saved_dtypes(hidden, weight, bias)
    leaf_gradients = empty_gradients(hidden, weight, bias, needs_grad, dtypes)
    return loss, means, logprobs, entropies, *leaf_gradients


scale_saved_gradients(_forward, leaves=LEAVES, first_output=4)


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
    group: dist.ProcessGroup | None = None,
) -> PolicyLoss:
    """Policy-gradient loss of packed completions.

    Differentiable once in hidden, weight and bias. Takes one GEMM under torch.no_grad, two with a
    frozen weight, else three. A loss without tokens is 0 and still part of the graph.

    On a GPU there is one synchronisation with the host, for the number of rows and for nan or inf
    in their hidden states. Objectives of whole completions have one more, and four if a completion
    is longer than a chunk.

    Args:
        hidden, weight, targets, row_index, temperature, bias, softcap, chunk_rows, group: see
            linear_logprob.
        advantages, cu_seqlens, objective, old_logprobs, ref_logprobs, sampler_logprobs, normalizer:
            see policy_loss.
        all_rows: compute all tokens. By default those whose loss certainly has no gradient
        (advantage
            or correction 0, no KL and no entropy term) are left out before the logits. Their
            gradient is exactly zero, their log-prob and entropy are nan, and the statistics are
            means over the other tokens.

    Returns:
        A PolicyLoss in fp32, or in fp64 for fp64 hidden states.

    Raises:
        ValueError: as linear_logprob and policy_loss. On a GPU also for nan or inf in hidden
        states.
    """
    check_objective(objective)
    check_tensors(
        hidden=hidden,
        weight=weight,
        targets=targets,
        bias=bias,
        row_index=row_index,
        advantages=advantages,
        cu_seqlens=cu_seqlens,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs,
    )
    check_settings(temperature, softcap, chunk_rows, group)
    number, tensor = split_normalizer(normalizer)
    needs_grad = [
        torch.is_grad_enabled() and leaf is not None and leaf.requires_grad
        for leaf in (hidden, weight, bias)
    ]
    loss, means, logprobs, entropies, *_ = _forward(
        hidden,
        weight,
        targets,
        bias,
        row_index,
        float(temperature),
        softcap,
        chunk_rows,
        group_name(group),
        advantages,
        cu_seqlens,
        objective.json,
        old_logprobs,
        ref_logprobs,
        sampler_logprobs,
        number,
        tensor,
        all_rows,
        needs_grad,
    )
    return PolicyLoss.from_outputs(loss, means, logprobs, entropies)
