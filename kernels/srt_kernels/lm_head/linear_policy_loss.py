"""linear_policy_loss: hidden states, LM head and packed rollouts -> loss, with three GEMMs.

The derivative of a token-level objective by a token's log-prob depends on that log-prob and on what is known before,
so the gradient is formed in the chunk where the logits live: logits, dX, dW, and nothing is computed again in backward,
which only scales what forward saved (dX [M, H] in hidden's dtype, dW [V, H] in weight's). Where it depends on a whole
completion (sequence ratio, or sequence correction without old_logprobs) chunks hold whole completions; one that is
longer than a chunk has a pass for its log-probs first: four GEMMs for that one.
"""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
from torch import Tensor

from srt_kernels.core.backend import on_its_device
from srt_kernels.core.checks import check_settings, check_tensors, expect
from srt_kernels.core.segments import segment_reduce
from srt_kernels.lm_head.linear_logprob import HEAD, group_name, make_named_head
from srt_kernels.lm_head.lm_head import (
    HeadGradients,
    KnownGradient,
    LMHead,
    check_finite,
    head_logprobs,
    head_pass,
)
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.policy_loss import (
    ROLLOUTS,
    PolicyLoss,
    TokenInputs,
    check_objective,
    differentiable_once,
    finish,
    split_normalizer,
    token_inputs,
    token_terms,
)

LEAVES = (0, 1, 3)  # places of hidden, weight and bias among the op's arguments


class ObjectiveGradient:
    """Gradients of rows from an objective, where the rows' log-probs are."""

    g = h = None

    def __init__(self, objective: Objective, inputs: TokenInputs):
        self.objective, self.inputs = objective, inputs
        self.row_local = not _needs_whole_rollouts(objective, inputs)

    def grads(self, part: slice, logprobs: Tensor) -> tuple[Tensor, Tensor | None]:
        inputs = self.inputs.select(part)
        return token_terms(self.objective, logprobs, inputs).grads, _dentropies(
            self.objective, inputs
        )


def _needs_whole_rollouts(objective: Objective, inputs: TokenInputs) -> bool:
    return objective.ratio == "sequence" or (
        objective.correction.startswith("sequence") and inputs.correction is None
    )


def _dentropies(objective: Objective, inputs: TokenInputs) -> Tensor | None:
    return -objective.entropy_coef * inputs.weights if objective.entropy_coef > 0 else None


def _active(objective: Objective, inputs: TokenInputs) -> Tensor:
    """[N] bool: the tokens whose loss has a gradient, as far as is known before the log-probs are."""
    active = inputs.advantages != 0
    if inputs.correction is not None:
        active = active & (inputs.correction != 0)
    if objective.kl_coef > 0 or objective.entropy_coef > 0:
        return torch.ones_like(active)
    if _needs_whole_rollouts(objective, inputs):
        return segment_reduce(active, "max", inputs.cu_seqlens)[inputs.rollout] > 0
    return active


def _active_rows(active: Tensor, head: LMHead) -> Tensor:
    """[n] int64 positions of the active tokens. On a GPU the one host sync: how many, and is there nan among them?"""
    if not active.is_cuda or len(active) == 0:
        return active.nonzero().squeeze(1)
    spoilt = ~torch.cat([rows.isfinite().all(1) for rows in head.hidden.split(1 << 13)])
    spoilt = active & (spoilt if head.rows is None else spoilt[head.rows])
    count, bad, first = torch.stack([active.sum(), spoilt.sum(), spoilt.long().argmax()]).tolist()
    if bad:
        expect(False, "hidden", "finite values", f"nan or inf in the hidden row of token {first}")
    return active.nonzero_static(size=count).squeeze(1)


def _whole_rollouts(bounds: list[int], chunk: int) -> list[slice]:
    """Chunks that end where rollouts end, of at most `chunk` rows each."""
    parts, start = [], 0
    for stop, following in zip(bounds[1:], [*bounds[2:], None], strict=False):
        if stop > start and (following is None or following - start > chunk):
            parts.append(slice(start, stop))
            start = stop
    return parts


def _solve_rollouts(
    objective: Objective, head: LMHead, inputs: TokenInputs, grads: HeadGradients
) -> tuple[Tensor, Tensor]:
    """head_pass for an objective that needs whole rollouts."""
    bounds = inputs.cu_seqlens.tolist()  # a host sync
    if all(stop - start <= head.chunk for start, stop in itertools.pairwise(bounds)):
        return head_pass(
            head, ObjectiveGradient(objective, inputs), grads, _whole_rollouts(bounds, head.chunk)
        )
    results = [torch.empty_like(head.targets, dtype=head.dtype) for _ in range(2)]
    is_long = (inputs.cu_seqlens.diff() > head.chunk)[inputs.rollout]
    short, long = (~is_long).nonzero().squeeze(1), is_long.nonzero().squeeze(1)
    rest = inputs.select(short)
    parts = _whole_rollouts(rest.cu_seqlens.tolist(), head.chunk)
    of_short = head_pass(head.select(short), ObjectiveGradient(objective, rest), grads, parts)
    sub, inputs = head.select(long), inputs.select(long)
    logprobs, entropies = of_long = head_logprobs(sub)
    for result, some, others in zip(results, of_short, of_long, strict=True):
        result.index_copy_(0, short, some).index_copy_(0, long, others)
    g, h = token_terms(objective, logprobs, inputs).grads, _dentropies(objective, inputs)
    kept = (
        g.nonzero().squeeze(1) if h is None else torch.arange(len(g), device=g.device)
    )  # not the clipped
    head_pass(sub.select(kept), KnownGradient(g=g[kept], h=None if h is None else h[kept]), grads)
    return results[0], results[1]


def _solve(
    objective: Objective, head: LMHead, inputs: TokenInputs, grads: HeadGradients | None
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [n]; gradients into `grads` where there are any to take."""
    if grads is None:
        return head_logprobs(head)
    if _needs_whole_rollouts(objective, inputs):
        return _solve_rollouts(objective, head, inputs, grads)
    return head_pass(head, ObjectiveGradient(objective, inputs), grads)


@torch.library.custom_op(
    "srt_kernels::linear_policy_loss",
    mutates_args=(),
    schema=f"({HEAD}, {ROLLOUTS}, bool all_rows, bool[] wants)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
@on_its_device
def _forward(
    hidden, weight, targets, bias, row_index, temperature, softcap, chunk_rows, group, *rest
):
    """-> loss, means, log-probs [N], entropies [N], dX, dW, dbias (empty where not wanted)."""
    *rollouts, all_rows, wants = rest
    head = make_named_head(
        hidden, weight, targets, bias, row_index, temperature, softcap, chunk_rows, group
    )
    objective, inputs = token_inputs(targets, head.dtype, *rollouts)
    index = None
    active = torch.ones_like(targets, dtype=torch.bool) if all_rows else _active(objective, inputs)
    if active.is_cuda or not all_rows:
        index = _active_rows(active, head)
    if index is not None and len(index) < len(targets):
        head, inputs = head.select(index), inputs.select(index)
    sizes = inputs.weights * (inputs.advantages.abs() + objective.entropy_coef + objective.kl_coef)
    largest = sizes.max() if len(sizes) else sizes.new_ones(())
    grads = (
        HeadGradients(head, tuple(wants), largest, _saved_dtypes(hidden, weight, bias))
        if any(wants)
        else None
    )
    logprobs, entropies = _solve(objective, head, inputs, grads)
    if not logprobs.is_cuda:
        check_finite(head, logprobs)
    loss, means = finish(objective, inputs, token_terms(objective, logprobs, inputs), entropies)
    if len(logprobs) < len(targets):
        logprobs, entropies = (
            t.new_full((len(targets),), torch.nan).index_copy_(0, index, t)
            for t in (logprobs, entropies)
        )
    if grads is None:
        return loss, means, logprobs, entropies, *(hidden.new_empty(0) for _ in range(3))
    return loss, means, logprobs, entropies, *grads.finish(head)


@_forward.register_fake
def _(hidden, weight, targets, bias, *rest):
    wants, dtype = rest[-1], torch.promote_types(hidden.dtype, torch.float32)
    loss, means = hidden.new_empty((), dtype=dtype), hidden.new_empty(5, dtype=torch.float64)
    logprobs, entropies = (targets.new_empty(targets.shape, dtype=dtype) for _ in range(2))
    leaves = (hidden, weight, hidden if bias is None else bias)
    dtypes = _saved_dtypes(hidden, weight, bias) if any(wants) else [hidden.dtype] * 3
    shapes = [leaf.shape if want else (0,) for want, leaf in zip(wants, leaves, strict=True)]
    grads = (
        hidden.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
    )
    return loss, means, logprobs, entropies, *grads


def _saved_dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[torch.dtype]:
    """Of the gradients by three leaves: each its own, but fp32 for fp16, where those of a mean over many tokens vanish
    before backward multiplies them by a gradient scaler's factor."""
    leaves = (hidden, weight, hidden if bias is None else bias)
    return [torch.float32 if leaf.dtype == torch.float16 else leaf.dtype for leaf in leaves]


def _save(ctx, inputs, output):
    ctx.inputs = len(inputs)
    ctx.dtypes = [None if inputs[place] is None else inputs[place].dtype for place in LEAVES]
    ctx.save_for_backward(*output[4:])
    ctx.set_materialize_grads(False)


def _scaled(gradient: Tensor, factor: Tensor, in_place: bool) -> Tensor:
    """gradient * factor (0-dim fp32), in fp32: a GPU rounds such a factor to the type of a half tensor."""
    if not in_place:
        return (gradient.float() if gradient.dtype.itemsize == 2 else gradient) * factor
    for rows in gradient.split(1 << 13):
        rows.copy_(rows * factor if rows.dtype.itemsize > 2 else rows.float().mul_(factor))
    return gradient


def _graph_is_kept() -> bool:
    """Whether another backward may follow, which needs what forward saved as it is."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return torch.compiler.is_compiling() or asked()


def _differentiate(ctx, dloss, *others):
    """Scales what forward saved, in place where no other backward can follow."""
    differentiable_once(others)
    grads = [None] * ctx.inputs
    if dloss is None:
        return tuple(grads)
    for place, saved, dtype in zip(LEAVES, ctx.saved_tensors, ctx.dtypes, strict=True):
        if ctx.needs_input_grad[place]:
            grads[place] = _scaled(saved, dloss, not _graph_is_kept()).to(dtype)
    return tuple(grads)


_forward.register_autograd(_differentiate, setup_context=_save)


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
    """Policy-gradient loss of packed completions; differentiable once in hidden, weight and bias.

    hidden, weight, targets, row_index, temperature, bias, softcap, chunk_rows, group: see linear_logprob. advantages,
    cu_seqlens, objective, the log-probs and normalizer: see policy_loss. Returns fp32 (fp64 for fp64 hidden states).

    Tokens whose loss has no gradient for certain (advantage or correction 0, no KL and no entropy term) are left out
    before the logits: their gradient is exactly zero, their log-prob and entropy are nan, and the statistics are means
    over the others. all_rows computes them too. A loss without such tokens is 0 and still part of the graph.
    Under torch.no_grad one GEMM; with a frozen weight two. On a GPU there is one host sync, for the number of rows and
    for nan or inf in their hidden states, which are a ValueError; objectives of whole completions have one more, and
    four where a completion is longer than a chunk.
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
    wants = [
        torch.is_grad_enabled() and t is not None and t.requires_grad
        for t in (hidden, weight, bias)
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
        *split_normalizer(normalizer),
        all_rows,
        wants,
    )
    return PolicyLoss.of(loss, means, logprobs, entropies)
