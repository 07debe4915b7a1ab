"""The three GEMMs of an LM head, with fp32 results from whatever operands the device is fast with.

CUDA: operands in hidden's dtype, products in fp32 by cuBLAS. CPU: halves are cast up, the weight slice by slice (which
the caches hold: faster than a whole copy, and no memory); a bf16 GEMM there would round the logits to bf16, 0.03 nats
rms in log-probs. ROCm: operands are cast up once.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor

from srt_kernels.core.backend import use_triton
from srt_kernels.core.segments import ranges

LEAST_ROWS = (
    16  # of a CPU GEMM: with fewer, libraries take other kernels, and a row's sum has another order
)
SLICE = 8 << 20  # bytes of a slice of the weight in fp32


def operand_dtype(hidden: Tensor) -> torch.dtype:
    """Of the GEMMs' operands. Triton's interpreter computes with the bits of bf16 as integers: fp32 there."""
    on_rocm = hidden.is_cuda and torch.version.hip is not None
    interpreted_bf16 = not hidden.is_cuda and hidden.dtype == torch.bfloat16 and use_triton(hidden)
    return torch.float32 if on_rocm or interpreted_bf16 else hidden.dtype


def _mixed(x: Tensor) -> bool:
    return x.is_cuda and x.dtype.itemsize == 2


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in full fp32 by oneDNN: 2.2 times as fast as the BLAS behind mm on AMD CPUs (430 and 200 GFLOP/s)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], None)


def _takes_linear(x: Tensor) -> bool:
    found = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return found and x.dtype == torch.float32


@contextmanager
def _fp32_precision(setting, value: str | None):
    """What fp32 GEMMs may round their operands to, for these few calls; the setting is the process's. None: as it is."""
    before = setting.fp32_precision
    if value is not None:
        setting.fp32_precision = value
    try:
        yield
    finally:
        if value is not None:
            setting.fp32_precision = before


def _bf16_operands(allowed: bool):
    """fp32 GEMMs may round operands to bf16, where all but dlogits are bf16 numbers anyway; sums stay in fp32.

    CPUs with AMX do and are fast; others get oneDNN's fp32 GEMM.
    """
    return _fp32_precision(torch.backends.mkldnn.matmul, "bf16" if allowed else None)


def _exact():
    """fp32 GEMMs of a GPU without TF32, whatever the process has chosen for its model."""
    return _fp32_precision(torch.backends.cuda.matmul, "ieee")


def _full(x: Tensor) -> Tensor:
    """For a CPU GEMM."""
    return x.float() if x.dtype.itemsize == 2 else x


def _at_least(x: Tensor) -> Tensor:
    x = _full(x)
    missing = LEAST_ROWS - len(x)
    return x if missing <= 0 else torch.cat([x, x.new_zeros(missing, x.shape[1])])


def _slices(weight: Tensor) -> list[slice]:
    return ranges(len(weight), max(1, SLICE // (4 * weight.shape[1])))


def parts(weight: Tensor) -> list[slice]:
    """Of whole slices; what is as large goes back to the system when it is freed."""
    return ranges(len(weight), 8 * max(1, SLICE // (4 * weight.shape[1])))


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
        with _exact():
            return torch.mm(x, head.weight.t(), out=out)
    full, weight = _at_least(x), head.weight
    if (
        weight.dtype.itemsize > 2
    ):  # by the BLAS, not by _linear: its longer sums make log-probs worse by half
        return torch.mm(full, weight.t())[: len(x)]
    z = full.new_empty(len(full), len(weight))
    with _bf16_operands(head.exact_in_bf16):
        for part in _slices(weight):
            torch.mm(full, weight[part].float().t(), out=z[:, part])
    return z[: len(x)]


def times_weight(d: Tensor, weight: Tensor, exact_in_bf16: bool, dtype: torch.dtype) -> Tensor:
    """dX [C, H] = d [C, V] @ weight, in `dtype` on a GPU and in the operands' dtype elsewhere."""
    if d.is_cuda:
        if _mixed(d) and dtype != d.dtype:
            return torch.mm(d, weight, out_dtype=dtype)
        with _exact():
            return torch.mm(d, weight)
    full, narrow = _at_least(d), weight.dtype.itemsize == 2
    if not narrow and not _takes_linear(full):
        return torch.mm(full, weight)[: len(d)]
    dx = full.new_zeros(len(full), weight.shape[1])
    with _bf16_operands(exact_in_bf16):
        for part in _slices(
            weight
        ):  # oneDNN copies the weight that it is given: a slice, not all of it
            if narrow:
                dx.addmm_(full[:, part], weight[part].float())
            else:
                dx.add_(_linear(full[:, part], weight[part].t()))
    return dx[: len(d)]


def add_outer_(dw: Tensor, d: Tensor, x: Tensor, started: bool, exact_in_bf16: bool) -> None:
    """dW [V, H] = d [C, V].T @ x [C, H], added to what is there if `started`."""
    if _mixed(d):
        if started:
            torch.addmm(dw, d.t(), x, out_dtype=torch.float32, out=dw)
        else:
            torch.mm(d.t(), x, out_dtype=torch.float32, out=dw)
        return
    if d.is_cuda:
        with _exact():
            dw.addmm_(d.t(), x) if started else torch.mm(d.t(), x, out=dw)
        return
    d, x = _full(d), _full(x)
    if not exact_in_bf16:
        dw.addmm_(d.t(), x) if started else torch.mm(d.t(), x, out=dw)
        return
    with _bf16_operands(True):
        for part in _slices(dw):  # as in times_weight
            dw[part].addmm_(d[:, part].t(), x) if started else torch.mm(
                d[:, part].t(), x, out=dw[part]
            )
