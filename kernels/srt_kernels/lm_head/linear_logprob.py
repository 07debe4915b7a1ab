"""linear_logprob: hidden states and LM head -> log-prob and entropy of each target, never an [N, V] tensor.

Without gradient one fused GEMM on a GPU, which stores no logits at all. Differentiable by recomputing: backward makes
the logits again, chunk by chunk, and two GEMMs of their gradient: four in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from srt_kernels.core.backend import on_its_device
from srt_kernels.core.checks import check_settings, check_tensors
from srt_kernels.lm_head.lm_head import (
    HeadGradients,
    KnownGradient,
    check_finite,
    head_logprobs,
    head_pass,
    make_head,
)

HEAD = """Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, Tensor? row_index, float temperature, float? softcap,
int? chunk_rows, str group"""


def group_name(group: dist.ProcessGroup | None) -> str:
    return "" if group is None else group.group_name


def group_of(name: str) -> dist.ProcessGroup | None:
    return dist.distributed_c10d._resolve_process_group(name) if name else None


def make_named_head(
    hidden,
    weight,
    targets,
    bias,
    row_index,
    temperature,
    softcap,
    chunk_rows,
    group: str,
    forward_only: bool = False,
):
    """make_head from what a torch.library op can take."""
    return make_head(
        hidden,
        weight,
        targets,
        temperature,
        bias,
        softcap,
        row_index,
        chunk_rows,
        group_of(group),
        forward_only,
    )


@torch.library.custom_op(
    "srt_kernels::linear_logprob", mutates_args=(), schema=f"({HEAD}) -> (Tensor, Tensor)"
)
@on_its_device
def _forward(*arguments) -> tuple[Tensor, Tensor]:
    head = make_named_head(*arguments, forward_only=True)
    logprobs, entropies = head_logprobs(head)
    if not logprobs.is_cuda:
        check_finite(head, logprobs)
    return logprobs, entropies


@_forward.register_fake
def _(hidden, weight, targets, *_):
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return tuple(targets.new_empty(targets.shape, dtype=dtype) for _ in range(2))


@torch.library.custom_op(
    "srt_kernels::linear_logprob_backward",
    mutates_args=(),
    schema=f"(Tensor? dlogprobs, Tensor? dentropies, bool[] wants, {HEAD}) -> (Tensor, Tensor, Tensor)",
)
@on_its_device
def _backward(
    dlogprobs: Tensor | None, dentropies: Tensor | None, wants: Sequence[bool], *arguments
):
    head = make_named_head(*arguments)
    hidden, weight, targets, bias = arguments[:4]
    g, h = (None if grad is None else grad.to(head.dtype) for grad in (dlogprobs, dentropies))
    if g is None:
        g = torch.zeros_like(targets, dtype=head.dtype)
    largest = g.abs().max() if len(g) else g.new_ones(())
    if h is not None and len(h):
        largest = torch.maximum(largest, h.abs().max())
    grads = HeadGradients(
        head,
        tuple(wants),
        largest,
        [leaf.dtype for leaf in (hidden, weight, hidden if bias is None else bias)],
    )
    head_pass(head, KnownGradient(g=g, h=h), grads)
    return grads.finish(head)


@_backward.register_fake
def _(dlogprobs, dentropies, wants, hidden, weight, targets, bias, *_):
    leaves = zip(wants, (hidden, weight, hidden if bias is None else bias), strict=True)
    return tuple(
        hidden.new_empty(leaf.shape if want else (0,), dtype=leaf.dtype) for want, leaf in leaves
    )


def _save(ctx, inputs, output):
    hidden, weight, targets, bias, row_index, *ctx.settings = inputs
    ctx.save_for_backward(hidden, weight, targets, bias, row_index)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dlogprobs, dentropies):
    wants = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    dx, dw, dbias = (
        grad if want else None
        for grad, want in zip(
            _backward(dlogprobs, dentropies, wants, *ctx.saved_tensors, *ctx.settings),
            wants,
            strict=True,
        )
    )
    return dx, dw, None, dbias, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    row_index: Tensor | None = None,
    chunk_rows: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of its distribution, [N] each, fp32 nats (fp64 for fp64 hidden states).

    hidden [M, H] and weight [V, H] of any floating type; targets [N] int64; bias [V]; row_index [N] int64: the hidden
    row of each target, repeats allowed (None: N = M, in order). softcap is the model's (Gemma 2, arXiv 2408.00118) and
    comes before temperature, as in a sampler. Differentiable once in hidden, weight and bias. chunk_rows: rows of
    logits at a time (None: 96 MiB of them on a CPU, 2 GiB elsewhere).

    group: a process group whose rank r holds rows r V to (r + 1) V of the head, with the same hidden and targets (of
    the whole vocabulary) on all; results and dX are the whole vocabulary's, dW and dbias the rank's. Two all-reduces of
    [N] and, in backward, one of dX.

    Raises ValueError for bad shapes, dtypes and devices. Targets and rows out of range, and nan in hidden states, are
    a ValueError on a CPU; on a GPU, where the look would be a host sync, an assertion on the device and a nan log-prob.
    A row's result does not depend on the other rows.
    """
    check_tensors(hidden=hidden, weight=weight, targets=targets, bias=bias, row_index=row_index)
    check_settings(temperature, softcap, chunk_rows, group)
    return _forward(
        hidden,
        weight,
        targets,
        bias,
        row_index,
        float(temperature),
        softcap,
        chunk_rows,
        group_name(group),
    )
