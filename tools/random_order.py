"""A pytest plugin that sums matrix products and sums over a dimension in a random order.

It stands for machines that nobody here has: any BLAS, any width of vectors, any number of threads.
A tolerance that is derived from the arithmetic holds under it. From the root of the repository:

    export PYTHONPATH=tools:.:kernels
    python -m pytest -p random_order tests/kernels --confcutdir=tests/kernels

The terms of a sum are shuffled and cut into up to eight pieces. numpy sums each piece, then the
pieces are added one by one. The order depends on the number of terms and on SRT_ORDER_SEED
(default 0), so two calls agree bit by bit, as with a real BLAS. With TRITON_INTERPRET=1 tl.dot and
tl.sum are done in the same way.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_PIECES = 8
HALVES = (torch.bfloat16, torch.float16)
SEED = int(os.environ.get("SRT_ORDER_SEED", "0"))
libraries: list[torch.library.Library] = []  # what they override lasts as long as they do


@functools.cache
def random_pieces(terms: int) -> list[np.ndarray]:
    """The indices 0 to terms - 1, shuffled, in one piece or more. The same for the same `terms`."""
    generator = np.random.default_rng((SEED, terms))
    order = generator.permutation(terms)
    pieces = generator.integers(1, MAX_PIECES + 1)
    cuts = np.sort(generator.integers(0, terms + 1, pieces - 1))
    return np.split(order, cuts)


def random_matmul(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left [..., M, K] @ right [..., K, N]."""
    shape = (*left.shape[:-1], right.shape[-1])
    product = np.zeros(shape, dtype=np.result_type(left, right))
    for piece in random_pieces(left.shape[-1]):
        product = product + np.matmul(left[..., piece], right[..., piece, :])
    return product


def random_sum(values: np.ndarray, axis: int, keepdims: bool) -> np.ndarray:
    total = np.zeros((), dtype=values.dtype)
    for piece in random_pieces(values.shape[axis]):
        total = total + np.take(values, piece, axis).sum(axis, keepdims=keepdims)
    return total


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """In the operands' type; halves are summed in fp32."""
    dtype = left.dtype
    if dtype in HALVES:
        left = left.float()
        right = right.float()
    product = random_matmul(left.detach().numpy(), right.detach().numpy())
    return torch.from_numpy(product).to(dtype)


def matmul_out(left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
    return out.copy_(matmul(left, right))


def addmm(
    bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    product = matmul(left, right)
    if alpha != 1:
        product = alpha * product
    return product if beta == 0 else product + (bias if beta == 1 else beta * bias)


def addmm_out(bias: Tensor, left: Tensor, right: Tensor, *, out: Tensor, **scales: float) -> Tensor:
    return out.copy_(addmm(bias, left, right, **scales))


def addmm_(bias: Tensor, left: Tensor, right: Tensor, **scales: float) -> Tensor:
    return bias.copy_(addmm(bias, left, right, **scales))


def addmv(bias: Tensor, left: Tensor, right: Tensor, **scales: float) -> Tensor:
    return addmm(bias[..., None], left, right[:, None], **scales)[:, 0]


def addmv_out(bias: Tensor, left: Tensor, right: Tensor, *, out: Tensor, **scales: float) -> Tensor:
    return out.copy_(addmv(bias, left, right, **scales))


def addmv_(bias: Tensor, left: Tensor, right: Tensor, **scales: float) -> Tensor:
    return bias.copy_(addmv(bias, left, right, **scales))


def dot(left: Tensor, right: Tensor) -> Tensor:
    return matmul(left[None, :], right[:, None])[0, 0]


def onednn_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, post_op: str, scalars: Any, algorithm: Any
) -> Tensor:
    assert post_op == "none", post_op
    product = matmul(x, weight.t())
    return product if bias is None else product + bias


def sum_of_dimensions(
    values: Tensor, dim: Any, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    if dtype is not None:
        values = values.to(dtype)
    if not values.is_floating_point():
        values = values.long()
    dims = range(values.dim()) if not dim else [axis % values.dim() for axis in dim]
    total = values.detach()
    if total.dtype in HALVES:
        total = total.float()
    total = total.numpy()
    for axis in sorted(dims, reverse=True):
        total = random_sum(total, axis, keepdim)
    return torch.from_numpy(np.asarray(total)).to(values.dtype)


def sum_of_dimensions_out(
    values: Tensor, dim: Any, keepdim: bool = False, **options: Any
) -> Tensor:
    out = options.pop("out")
    return out.copy_(sum_of_dimensions(values, dim, keepdim, **options))


def override_torch() -> None:
    aten = torch.library.Library("aten", "IMPL")
    onednn = torch.library.Library("mkldnn", "IMPL")
    libraries.extend([aten, onednn])
    with warnings.catch_warnings(action="ignore"):  # "Overriding a previously registered kernel"
        for name in ("mm", "bmm"):
            aten.impl(name, matmul, "CPU")
            aten.impl(f"{name}.out", matmul_out, "CPU")
        for name in ("addmm", "baddbmm"):
            aten.impl(name, addmm, "CPU")
            aten.impl(f"{name}.out", addmm_out, "CPU")
            aten.impl(f"{name}_", addmm_, "CPU")
        aten.impl("addmv", addmv, "CPU")
        aten.impl("addmv.out", addmv_out, "CPU")
        aten.impl("addmv_", addmv_, "CPU")
        aten.impl("dot", dot, "CPU")
        aten.impl("sum.dim_IntList", sum_of_dimensions, "CPU")
        aten.impl("sum.IntList_out", sum_of_dimensions_out, "CPU")
        onednn.impl("_linear_pointwise", onednn_linear, "CPU")


def override_interpreter() -> None:
    """tl.dot and tl.sum of Triton's interpreter."""
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        left = a.data.astype(d.data.dtype)
        right = b.data.astype(d.data.dtype)
        product = random_matmul(left, right) + d.data
        return interpreter.TensorHandle(product, d.dtype.scalar)

    def sum_reduce(self: Any, values: Any) -> Any:
        data = values.handle.data
        axis = self.axis
        if axis is None:
            data = data.reshape(-1)
            axis = 0
        total = np.asarray(random_sum(data, axis, self.keep_dims))
        return self.to_tensor(total.astype(data.dtype)[()], values.dtype)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.ReduceOps.sum = sum_reduce


def pytest_configure() -> None:
    override_torch()
    if os.environ.get("TRITON_INTERPRET") == "1":
        override_interpreter()
