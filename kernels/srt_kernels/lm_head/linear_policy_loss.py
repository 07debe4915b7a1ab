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

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from srt_kernels.core.autograd import refuse_tangents, scale_saved_gradients
from srt_kernels.core.backend import on_device_of_tensors
from srt_kernels.core.checks import check_tensors
from srt_kernels.lm_head.gradient_sources import (
    active_index,
    largest_gradient,
    needs_whole_rollouts,
)
from srt_kernels.lm_head.head_gradients import LEAVES, HeadGradients, empty_gradients, leaf_dtypes
from srt_kernels.lm_head.lm_head import (
    HEAD_SCHEMA,
    check_finite,
    check_settings,
    group_name,
    make_head,
)
from srt_kernels.lm_head.passes import objective_pass
from srt_kernels.objective.finite import check_finite_on_cpu, token_values
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.policy_loss import PolicyLoss
from srt_kernels.objective.token_inputs import (
    ROLLOUT_SCHEMA,
    check_objective,
    make_token_inputs,
    split_normalizer,
)
from srt_kernels.objective.token_terms import reduce_terms, token_terms

HEAD_ARGUMENTS = 10  # number of arguments in HEAD_SCHEMA


def _saved_dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[torch.dtype]:
    """Types of the saved gradients: those of the leaves, but fp32 for fp16.

    In fp16 the gradients of a mean over many tokens would vanish before backward multiplies them by
    a gradient scaler's factor.
    """
    return [
        torch.float32 if dtype == torch.float16 else dtype
        for dtype in leaf_dtypes(hidden, weight, bias)
    ]


def _scatter(values: Tensor, index: Tensor, total: int) -> Tensor:
    """[total] with values [n] at index [n] and nan elsewhere."""
    return values.new_full((total,), torch.nan).index_copy_(0, index, values)


def _compute(*arguments) -> tuple[Tensor, ...]:
    """Return the loss, its statistics [5], log-probs [N], entropies [N], dX, dW and dbias.

    Gradients that are not needed are empty.
    """
    *rollouts, all_rows, needs_grad = arguments[HEAD_ARGUMENTS:]
    head = make_head(*arguments[:HEAD_ARGUMENTS])
    hidden, weight, targets, bias = arguments[:4]
    objective, inputs = make_token_inputs(targets, head.dtype, *rollouts)
    index = None
    if all_rows:
        check_finite_on_cpu(token_values(inputs), inputs)
    else:
        index, has_unique_rows = active_index(objective, head, inputs, rollouts[-1])
        head = replace(head, has_unique_rows=has_unique_rows)
        index = index if len(index) < len(targets) else None
    if index is not None:
        head = head.select(index)
        inputs = inputs.select(index)
    dtypes = _saved_dtypes(hidden, weight, bias)
    gradients = None
    if any(needs_grad):
        largest = largest_gradient(objective, inputs)
        gradients = HeadGradients(head, needs_grad, largest, dtypes)
    logprobs, entropies = objective_pass(objective, head, inputs, gradients)
    if not logprobs.is_cuda:
        check_finite(head, logprobs)
    terms = token_terms(objective, logprobs, inputs)
    loss, means = reduce_terms(objective, inputs, terms, entropies)
    if index is not None:
        logprobs = _scatter(logprobs, index, len(targets))
        entropies = _scatter(entropies, index, len(targets))
    if gradients is None:
        leaf_gradients = empty_gradients(hidden, weight, bias, needs_grad, dtypes)
    else:
        leaf_gradients = gradients.results(head)
    return loss, means, logprobs, entropies, *leaf_gradients


def _fake_compute(
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


def _make_op(name: str, tags: Sequence[torch.Tag]) -> CustomOpDef:
    schema = (
        f"({HEAD_SCHEMA}, {ROLLOUT_SCHEMA}, bool all_rows, bool[] needs_grad)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    function = on_device_of_tensors(_compute)
    op = torch.library.custom_op(name, function, mutates_args=(), schema=schema, tags=tags)
    op.register_fake(_fake_compute)
    scale_saved_gradients(op, leaves=LEAVES, first_output=4)
    return op


# The same function twice. torch.compile keeps an op with this tag out of CUDA graphs.
_reads_on_host = _make_op("srt_kernels::linear_policy_loss", [torch.Tag.cudagraph_unsafe])
_reads_nothing = _make_op("srt_kernels::linear_policy_loss_of_all_rows", [])


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
    unique_rows: bool = False,
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

    **Host reads.** On a GPU there is one synchronisation with the host, for the number of rows, for
    rows that repeat, and for values that are not finite. With all_rows there is none. Such a
    call can be captured in a CUDA graph. There are exceptions with a gradient and an objective of
    whole completions (a sequence ratio, or a sequence correction without old_logprobs). If there is
    more than one chunk, their lengths are read: one more synchronisation, and four if a completion
    is longer than a chunk. These calls, and those without all_rows, are of an op that torch.compile
    keeps out of CUDA graphs.

    Args:
        hidden, weight, targets, row_index, unique_rows, temperature, bias, softcap, chunk_rows,
            group: see linear_logprob. Without all_rows the op finds out by itself whether rows
            repeat.
        advantages, cu_seqlens, objective, old_logprobs, ref_logprobs, sampler_logprobs, normalizer:
            see policy_loss.
        all_rows: compute all tokens. By default those whose loss certainly has no gradient
            (advantage or correction 0, no KL and no entropy term) are left out before the logits.
            Their gradient is exactly zero, their log-prob and entropy are nan, and the statistics
            are means over the other tokens.

    Returns:
        A PolicyLoss in fp32, or in fp64 for fp64 hidden states.

    Raises:
        ValueError: as linear_logprob and policy_loss. Of log-probs and advantages only those of
            tokens that are computed, or that a correction leaves out, must be finite. A GPU too
            finds nan and inf in them, in hidden states and in the normalizer, but not in weight and
            bias. With all_rows it looks at no value: they make the loss nan, inf or 0.
        RuntimeError: a tensor with a forward-mode tangent.
    """
    check_objective(objective)
    tensors = dict(
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
    check_tensors(None, **tensors)
    refuse_tangents(**tensors)
    check_settings(unique_rows, temperature, softcap, chunk_rows, group)
    number, tensor = split_normalizer(normalizer)
    needs_grad = [
        torch.is_grad_enabled() and leaf is not None and leaf.requires_grad
        for leaf in (hidden, weight, bias)
    ]
    is_read = needs_whole_rollouts(objective, old_logprobs is not None) and any(needs_grad)
    op = _reads_nothing if all_rows and not is_read else _reads_on_host
    loss, means, logprobs, entropies, *_ = op(
        hidden,
        weight,
        targets,
        bias,
        row_index,
        unique_rows,
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
