"""linear_logprob: hidden states and LM head -> log-prob and entropy of each target.

There is never an [N, V] tensor. Without gradient a GPU runs one fused GEMM, which stores no logits.
Differentiable by recomputing: backward makes the logits again, chunk by chunk, and two GEMMs of
their gradient. That is four GEMMs in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from srt_kernels.core.autograd import refuse_tangents
from srt_kernels.core.backend import on_device_of_tensors
from srt_kernels.core.checks import check_tensors
from srt_kernels.lm_head.gradient_sources import KnownGradient
from srt_kernels.lm_head.head_gradients import LEAVES, HeadGradients, empty_gradients, leaf_dtypes
from srt_kernels.lm_head.lm_head import (
    HEAD_SCHEMA,
    check_finite,
    check_settings,
    group_name,
    make_head,
)
from srt_kernels.lm_head.passes import gradient_pass, logprob_pass


@torch.library.custom_op(
    "srt_kernels::linear_logprob", mutates_args=(), schema=f"({HEAD_SCHEMA}) -> (Tensor, Tensor)"
)
@on_device_of_tensors
def _forward(*head_arguments) -> tuple[Tensor, Tensor]:
    head = make_head(*head_arguments, is_forward_only=True)
    logprobs, entropies = logprob_pass(head)
    if not logprobs.is_cuda:
        check_finite(head, logprobs)
    return logprobs, entropies


@_forward.register_fake
def _fake_forward(hidden: Tensor, weight: Tensor, targets: Tensor, *_) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logprobs = targets.new_empty(targets.shape, dtype=dtype)
    return logprobs, torch.empty_like(logprobs)


@torch.library.custom_op(
    "srt_kernels::linear_logprob_backward",
    mutates_args=(),
    schema="(Tensor? grad_logprobs, Tensor? grad_entropies, bool[] needs_grad, "
    f"{HEAD_SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
@on_device_of_tensors
def _backward(
    grad_logprobs: Tensor | None,
    grad_entropies: Tensor | None,
    needs_grad: Sequence[bool],
    *head_arguments,
) -> tuple[Tensor, Tensor, Tensor]:
    head = make_head(*head_arguments)
    hidden, weight, targets, bias = head_arguments[:4]
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(targets, dtype=head.dtype)
    grad_logprobs = grad_logprobs.to(head.dtype)
    largest = grad_logprobs.abs().max() if len(targets) else grad_logprobs.new_ones(())
    if grad_entropies is not None:
        grad_entropies = grad_entropies.to(head.dtype)
        if len(targets):
            largest = torch.maximum(largest, grad_entropies.abs().max())
    gradients = HeadGradients(head, needs_grad, largest, leaf_dtypes(hidden, weight, bias))
    source = KnownGradient(grad_logprob=grad_logprobs, grad_entropy=grad_entropies)
    gradient_pass(head, source, gradients)
    return gradients.results(head)


@_backward.register_fake
def _fake_backward(
    grad_logprobs: Tensor | None,
    grad_entropies: Tensor | None,
    needs_grad: Sequence[bool],
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    *_,
) -> tuple[Tensor, ...]:
    dtypes = leaf_dtypes(hidden, weight, bias)
    return tuple(empty_gradients(hidden, weight, bias, needs_grad, dtypes))


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    hidden, weight, targets, bias, row_index, *ctx.settings = inputs
    ctx.save_for_backward(hidden, weight, targets, bias, row_index)
    ctx.set_materialize_grads(False)


def _refuse(ctx: Any, *output_gradients: Tensor | None) -> None:
    raise RuntimeError("linear_logprob is differentiable once: its gradient has none of its own")


_backward.register_autograd(_refuse)


def _differentiate(
    ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None
) -> tuple[Tensor | None, ...]:
    head_arguments = (*ctx.saved_tensors, *ctx.settings)
    needs_grad = [ctx.needs_input_grad[leaf] for leaf in LEAVES]
    leaf_gradients = _backward(grad_logprobs, grad_entropies, needs_grad, *head_arguments)
    gradients: list[Tensor | None] = [None] * len(head_arguments)
    for leaf, needs, gradient in zip(LEAVES, needs_grad, leaf_gradients, strict=True):
        gradients[leaf] = gradient if needs else None
    return tuple(gradients)


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
    unique_rows: bool = False,
    chunk_rows: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of its distribution.

    Differentiable once in hidden, weight and bias: a second derivative raises RuntimeError, and so
    does forward mode (torch.func.jvp). A row's result does not depend on the other rows.

    Args:
        hidden: [M, H] fp16, bf16, fp32 or fp64. float8 has no products here.
        weight: [V, H] of the same types. A wider one is rounded to hidden's, as autocast does.
        targets: [N] int64.
        temperature: divides the logits, after the softcap, as in a sampler.
        bias: [V]. Without a softcap -inf masks an entry of the vocabulary, whose log-prob is -1e30.
        softcap: the model's (Gemma 2, arXiv 2408.00118).
        row_index: [N] int64, the hidden row of each target. Rows may repeat. None: N = M, in order.
        unique_rows: no row repeats in row_index. Then dX takes no fp32 [M, H] and, on a GPU, no
            sort of the rows.
        chunk_rows: rows of logits at a time, at most. Chunks of a batch are equal. None: up to 96
            MiB of logits on a CPU, up to 2.5 GiB elsewhere, by the chip and H.
        group: a process group whose rank r holds rows r V to (r + 1) V of the head. All ranks have
            the same hidden states and the same targets of the whole vocabulary. Results and dX are
            the whole vocabulary's; dW and dbias are the rank's. There are two all-reduces of [N],
            and in backward one of dX. All ranks have the same kind of GPU, or give chunk_rows.

    Returns:
        Log-probs [N] and entropies [N] in nats: fp32, or fp64 for fp64 hidden states.

    Raises:
        ValueError: a bad shape, dtype, device or setting. On a CPU also a target or a row out of
            range, a row that repeats with unique_rows, or nan or inf in what makes the logits. On a
            GPU, where looking would synchronise with the host, these are an assertion on the device
            and a nan log-prob.
    """
    check_tensors(hidden=hidden, weight=weight, targets=targets, bias=bias, row_index=row_index)
    refuse_tangents(hidden=hidden, weight=weight, bias=bias)
    check_settings(unique_rows, temperature, softcap, chunk_rows, group)
    return _forward(
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
    )
