"""The backward pass of ops whose forward pass already forms the gradients of its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _autograd
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad

from srt_kernels.core.backend import is_interpreted_bf16, on_device_of_tensors, use_triton

ROWS_AT_A_TIME = 1 << 13  # rows of a gradient that are scaled at a time


def scale_saved_gradients(op: CustomOpDef, leaves: tuple[int, ...], first_output: int) -> None:
    """Register the backward pass of an op that returns a loss first and its gradients last.

    leaves: the places of the differentiable inputs. Their gradients are the outputs from
    `first_output` on. Backward multiplies them by the gradient of the loss; in place if no other
    backward can follow. The loss is differentiable once: a second derivative raises RuntimeError.
    """

    def save(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.number_of_inputs = len(inputs)
        ctx.dtypes = [None if inputs[leaf] is None else inputs[leaf].dtype for leaf in leaves]
        ctx.save_for_backward(*output[first_output:])
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, dloss: Tensor | None, *output_gradients: Tensor | None) -> tuple:
        if any(gradient is not None for gradient in output_gradients):
            raise RuntimeError(
                "the loss is differentiable once: "
                "its gradient is formed in forward and has none of its own"
            )
        gradients: list[Tensor | None] = [None] * ctx.number_of_inputs
        if dloss is None:
            return tuple(gradients)
        for leaf, saved, dtype in zip(leaves, ctx.saved_tensors, ctx.dtypes, strict=True):
            if ctx.needs_input_grad[leaf]:
                gradients[leaf] = _scale(saved, dloss, in_place=not _graph_is_kept()).to(dtype)
        return tuple(gradients)

    op.register_autograd(differentiate, setup_context=save)


def refuse_tangents(**leaves: Tensor | None) -> None:
    """Raise RuntimeError for a tensor with a tangent (torch.func.jvp, dual tensors).

    torch would take the derivative of an op without a forward mode as 0.
    """
    if forward_ad._current_level < 0:
        return
    for name, leaf in leaves.items():
        if leaf is not None and forward_ad.unpack_dual(leaf).tangent is not None:
            raise RuntimeError(
                f"{name}: expected no tangent (only backward has a formula), got one"
            )


def _scale(gradient: Tensor, factor: Tensor, in_place: bool) -> Tensor:
    """gradient * factor (0-dim fp32), in fp32. In place the result is rounded to gradient's type.

    A GPU would round the factor to the type of a half tensor.
    """
    if not in_place:
        wide = gradient.float() if gradient.dtype.itemsize == 2 else gradient
        return wide * factor
    _scale_(gradient, factor)
    return gradient


@torch.library.custom_op(
    "srt_kernels::scale_",
    mutates_args=("gradient",),
    schema="(Tensor(a!) gradient, Tensor factor) -> ()",
)
@on_device_of_tensors
def _scale_(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor (0-dim). On a GPU one pass over the gradient; none if the factor is 1."""
    if use_triton(gradient) and not is_interpreted_bf16(gradient):
        # Imported here because Triton is optional.
        from srt_kernels.core.scale_kernel import scale_

        scale_(gradient, factor)
    elif factor != 1:
        for rows in gradient.split(ROWS_AT_A_TIME):
            rows.copy_(rows * factor if rows.dtype.itemsize > 2 else rows.float().mul_(factor))


@_scale_.register_fake
def _fake_scale_(gradient: Tensor, factor: Tensor) -> None:
    return None


def _graph_is_kept() -> bool:
    """Whether another backward may follow, which would need the saved gradients as they are."""
    keeps_graph = getattr(_autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return torch.compiler.is_compiling() or keeps_graph()
