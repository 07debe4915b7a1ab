"""The three GEMMs of an LM head, with fp32 results from whatever operands the device is fast with.

GPU (CUDA): operands in hidden's dtype, products in fp32 by cuBLAS. Elsewhere operands are cast up to fp32, which costs
4 V H bytes for the weight, as the fp32 accumulator of dW does anyway; a bf16 GEMM on a CPU would round the logits to
bf16, 0.03 nats rms in log-probs.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor

from .jit import use_triton

LEAST_ROWS = 16  # of a CPU GEMM: with fewer, libraries take other kernels, and a row's sum has another order


def has_mixed(hidden: Tensor) -> bool:
    """Whether GEMMs of hidden's dtype can have fp32 results: torch has that for CUDA (not for ROCm or CPUs).

    Triton's interpreter gets it for fp16, by casts, so that kernels see on a CPU what they see on a GPU.
    """
    if hidden.is_cuda:
        return torch.version.hip is None
    return hidden.dtype == torch.float16 and use_triton(hidden)


def _mixed(x: Tensor) -> bool:
    return x.is_cuda and x.dtype.itemsize == 2


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in full fp32 by oneDNN: 2.2 times as fast as the BLAS behind mm on AMD CPUs (430 and 200 GFLOP/s)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], None)


def _takes_linear(x: Tensor) -> bool:
    return x.dtype == torch.float32 and torch.backends.mkldnn.is_available() and hasattr(torch.ops, "mkldnn")


@contextmanager
def _bf16_operands(allowed: bool):
    """fp32 GEMMs may round their operands to bf16, where all but dlogits are bf16 numbers anyway; sums stay in fp32.

    CPUs with AMX do and are fast; others get oneDNN's fp32 GEMM. The setting is the process's, for these few calls.
    """
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    if allowed:
        setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        if allowed:
            setting.fp32_precision = before


def _full(x: Tensor) -> Tensor:
    """For a CPU GEMM."""
    return x.float() if x.dtype == torch.float16 else x


def _at_least(x: Tensor) -> Tensor:
    x = _full(x)
    missing = LEAST_ROWS - len(x)
    return x if missing <= 0 else torch.cat([x, x.new_zeros(missing, x.shape[1])])


def buffer(head, rows: int) -> Tensor | None:
    """For the logits of chunks of up to `rows` rows; None where the GEMM brings its own."""
    if not head.hidden.is_cuda:
        return None
    padded = -(-len(head.weight) // 16) * 16  # so that rows begin at 16 bytes, in either dtype
    return torch.empty(rows, padded, dtype=head.dtype, device=head.hidden.device)


def logits(x: Tensor, head, buffer: Tensor | None = None) -> Tensor:
    """[C, V] fp32 (or fp64) of x [C, H], before bias and softcap."""
    if x.is_cuda:
        out = None if buffer is None else buffer[: len(x), : len(head.weight)]
        if _mixed(x):
            return torch.mm(x, head.weight.t(), out_dtype=torch.float32, out=out)
        return torch.mm(x, head.weight.t(), out=out)
    full, weight = _at_least(x), _full(head.weight)
    if not head.exact_in_bf16 and _takes_linear(full):
        return _linear(full, weight)[: len(x)]
    with _bf16_operands(head.exact_in_bf16):
        return torch.mm(full, weight.t())[: len(x)]


def times_weight(d: Tensor, weight: Tensor, exact_in_bf16: bool, dtype: torch.dtype) -> Tensor:
    """dX [C, H] = d [C, V] @ weight, in `dtype` on a GPU and in the operands' dtype elsewhere."""
    if d.is_cuda:
        return torch.mm(d, weight, out_dtype=dtype) if _mixed(d) and dtype != d.dtype else torch.mm(d, weight)
    full, weight = _at_least(d), _full(weight)
    if not exact_in_bf16 and _takes_linear(full):
        return _linear(full, weight.t())[: len(d)]
    with _bf16_operands(exact_in_bf16):
        return torch.mm(full, weight)[: len(d)]


def add_outer_(dw: Tensor, d: Tensor, x: Tensor, started: bool, exact_in_bf16: bool) -> None:
    """dW [V, H] = d [C, V].T @ x [C, H], added to what is there if `started`."""
    if _mixed(d):
        if started:
            torch.addmm(dw, d.t(), x, out_dtype=torch.float32, out=dw)
        else:
            torch.mm(d.t(), x, out_dtype=torch.float32, out=dw)
        return
    d, x = (d, x) if d.is_cuda else (_full(d), _full(x))
    with _bf16_operands(exact_in_bf16 and not d.is_cuda):
        if started:
            dw.addmm_(d.t(), x)
        else:
            torch.mm(d.t(), x, out=dw)
