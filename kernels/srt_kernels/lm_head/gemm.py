"""The three GEMMs of an LM head: logits, dX and dW. Results are in fp32.

CUDA: operands in hidden's dtype, products in fp32 by cuBLAS. ROCm: operands are cast up once. CPU:
half operands are cast up, the weight slice by slice. The caches hold a slice, so this is faster
than a whole copy and takes no memory. A bf16 GEMM on a CPU would round the logits to bf16: 0.03
nats rms in log-probs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from srt_kernels.core.backend import is_interpreted_bf16
from srt_kernels.core.segments import chunk_slices

# Least rows of a CPU GEMM. With fewer rows libraries take other kernels, which sum a row in another
# order.
LEAST_ROWS = 16
SLICE_BYTES = 8 << 20  # of a slice of the weight in fp32
SLICES_OF_A_PART = 8


def operand_dtype(hidden: Tensor) -> torch.dtype:
    """Type of the GEMMs' operands.

    fp32 for bf16 in Triton's interpreter, which computes with the bits of bf16 as integers.
    """
    is_on_rocm = hidden.is_cuda and torch.version.hip is not None
    return torch.float32 if is_on_rocm or is_interpreted_bf16(hidden) else hidden.dtype


def padded_columns(vocab_size: int) -> int:
    """Columns of a buffer of logits: rows begin at multiples of 16 bytes in any dtype."""
    return -(-vocab_size // 16) * 16


def logits_buffer(weight: Tensor, rows: int, dtype: torch.dtype) -> Tensor | None:
    """[rows, padded_columns(V)] memory for a chunk's logits. None: the GEMM allocates its own."""
    if not weight.is_cuda:
        return None
    columns = padded_columns(len(weight))
    return torch.empty(rows, columns, dtype=dtype, device=weight.device)


def logits_gemm(
    x: Tensor, weight: Tensor, is_exact_in_bf16: bool, buffer: Tensor | None = None
) -> Tensor:
    """Logits [C, V] before bias and softcap: x @ weight.T, of hidden rows x [C, H], weight [V, H].

    fp32, or fp64 for fp64 operands. In `buffer` if there is one.
    """
    if x.is_cuda:
        out = None if buffer is None else buffer[: len(x), : len(weight)]
        if _is_half_on_gpu(x):
            return torch.mm(x, weight.t(), out_dtype=torch.float32, out=out)
        with _without_tf32():
            return torch.mm(x, weight.t(), out=out)
    rows = _pad_rows(x)
    if weight.dtype.itemsize > 2:
        # By the BLAS: the longer sums of _onednn_linear make errors of log-probs greater by half.
        return torch.mm(rows, weight.t())[: len(x)]
    logits = rows.new_empty(len(rows), len(weight))
    with _bf16_operands(is_exact_in_bf16):
        for part in _weight_slices(weight):
            torch.mm(rows, weight[part].float().t(), out=logits[:, part])
    return logits[: len(x)]


def dhidden_gemm(
    dlogits: Tensor, weight: Tensor, is_exact_in_bf16: bool, dtype: torch.dtype
) -> Tensor:
    """dX [C, H] = dlogits [C, V] @ weight [V, H].

    In `dtype` on a GPU, else in the operands' dtype.
    """
    if dlogits.is_cuda:
        if _is_half_on_gpu(dlogits) and dtype != dlogits.dtype:
            return torch.mm(dlogits, weight, out_dtype=dtype)
        with _without_tf32():
            return torch.mm(dlogits, weight)
    rows = _pad_rows(dlogits)
    is_half = weight.dtype.itemsize == 2
    if not is_half and not _takes_onednn_linear(rows):
        return torch.mm(rows, weight)[: len(dlogits)]
    dhidden = rows.new_zeros(len(rows), weight.shape[1])
    with _bf16_operands(is_exact_in_bf16):
        for part in _weight_slices(weight):
            if is_half:
                dhidden.addmm_(rows[:, part], weight[part].float())
            else:  # oneDNN copies the weight that it gets: a slice, not all of it
                dhidden.add_(_onednn_linear(rows[:, part], weight[part].t()))
    return dhidden[: len(dlogits)]


def dweight_gemm_(
    dweight: Tensor, dlogits: Tensor, x: Tensor, is_exact_in_bf16: bool, accumulate: bool
) -> None:
    """dW [V, H] = dlogits [C, V].T @ x [C, H], in place. Added to what is there if `accumulate`."""
    if _is_half_on_gpu(dlogits):
        if accumulate:
            torch.addmm(dweight, dlogits.t(), x, out_dtype=torch.float32, out=dweight)
        else:
            torch.mm(dlogits.t(), x, out_dtype=torch.float32, out=dweight)
        return
    if dlogits.is_cuda:
        with _without_tf32():
            _mm_(dweight, dlogits.t(), x, accumulate)
        return
    dlogits = _widen(dlogits)
    x = _widen(x)
    if not is_exact_in_bf16:
        _mm_(dweight, dlogits.t(), x, accumulate)
        return
    with _bf16_operands(True):
        for part in _weight_slices(dweight):  # oneDNN copies what it gets
            _mm_(dweight[part], dlogits[:, part].t(), x, accumulate)


def weight_parts(weight: Tensor) -> list[slice]:
    """Parts of whole slices. Memory of this size goes back to the system when it is freed."""
    return chunk_slices(len(weight), SLICES_OF_A_PART * _rows_of_a_slice(weight))


def _weight_slices(weight: Tensor) -> list[slice]:
    return chunk_slices(len(weight), _rows_of_a_slice(weight))


def _rows_of_a_slice(weight: Tensor) -> int:
    return max(1, SLICE_BYTES // (4 * weight.shape[1]))


def _mm_(out: Tensor, left: Tensor, right: Tensor, accumulate: bool) -> None:
    if accumulate:
        out.addmm_(left, right)
    else:
        torch.mm(left, right, out=out)


def _is_half_on_gpu(x: Tensor) -> bool:
    return x.is_cuda and x.dtype.itemsize == 2


def _widen(x: Tensor) -> Tensor:
    """x in fp32 if it is half: an operand of a CPU GEMM."""
    return x.float() if x.dtype.itemsize == 2 else x


def _pad_rows(x: Tensor) -> Tensor:
    """x [C, K], widened, with rows of zeros up to LEAST_ROWS."""
    x = _widen(x)
    missing = LEAST_ROWS - len(x)
    return x if missing <= 0 else torch.cat([x, x.new_zeros(missing, x.shape[1])])


def _takes_onednn_linear(x: Tensor) -> bool:
    has_op = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and has_op and x.dtype == torch.float32


def _onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in full fp32 by oneDNN.

    2.2 times as fast as the BLAS behind mm on AMD CPUs (430 and 200 GFLOP/s).
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], None)


@contextmanager
def _bf16_operands(is_allowed: bool) -> Iterator[None]:
    """Let fp32 GEMMs of a CPU round operands to bf16, if allowed. Sums stay in fp32.

    For products in which all operands but dlogits are bf16 numbers already. CPUs with AMX do it and
    are fast. Others take oneDNN's fp32 GEMM. The setting is the process's.
    """
    if not is_allowed:
        yield
        return
    with _kept_precision(torch.backends.mkldnn):
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # pyright: ignore[reportAttributeAccessIssue]
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Keep TF32 out of fp32 GEMMs of a GPU, whatever the process has chosen for its model.

    The setting is the process's. torch's older interface has getters that raise if the two
    disagree. So it is set, too, if it agrees now.
    """
    setting = torch.backends.cuda.matmul
    if setting.fp32_precision != "tf32":
        yield
        return
    older = _older_precision()
    with _kept_precision(torch.backends.mkldnn), _kept_precision(torch.backends.cuda):
        if older is not None:
            torch.set_float32_matmul_precision("highest")
        setting.fp32_precision = "ieee"
        try:
            yield
        finally:
            if older is not None:
                torch.set_float32_matmul_precision(older)


def _older_precision() -> str | None:
    """torch's older setting of fp32 GEMMs. None if it disagrees with the newer one."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@contextmanager
def _kept_precision(backend: Any) -> Iterator[None]:
    """Restore what fp32 GEMMs of torch.backends.cuda or mkldnn may round operands to.

    A value that is also the parent's was inherited, and is inherited again.
    """
    all_of_backend = torch.backends.cudnn if backend is torch.backends.cuda else backend
    previous = backend.matmul.fp32_precision
    is_inherited = previous == all_of_backend.fp32_precision
    try:
        yield
    finally:
        backend.matmul.fp32_precision = "none" if is_inherited else previous
