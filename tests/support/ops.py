"""What tests of the ops share: batches, a counter of GEMMs, and what a CPU's GEMMs do."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from srt_kernels.core.backend import use_triton
from srt_kernels.testing import PackedRollouts, packed_rollouts

# For the PyTorch path only, or bf16: Triton's interpreter takes the bits of bf16 for an integer.
cpu_path = pytest.mark.skipif(
    use_triton(torch.zeros(1)), reason="this run is of the Triton kernels"
)

# Of a batch's rollouts, 27 tokens in all. Two are empty, two have one token.
LENGTHS = [3, 0, 1, 7, 9, 1, 0, 6]

GEMMS = ("mm", "addmm", "addmm_", "bmm", "_linear_pointwise")


def exact_rollouts(lengths: list[int], **options) -> PackedRollouts:
    """packed_rollouts whose logits come out of any GEMM without error.

    Each partial sum of a logit is a multiple of 2^-16 below 2^8, and so an fp32 number. Errors are
    those of our own code only, and bounds are tight. Hidden states have more bits than TF32, bf16
    and fp16, so that rounding them shows. The weight is the same number in each of these types.
    """
    batch = packed_rollouts(lengths, **options)
    return replace(
        batch,
        hidden=(batch.hidden * 2**12).round() / 2**12,
        weight=(batch.weight * 2**4).round() / 2**4,
        bias=(batch.bias * 2**12).round() / 2**12,
    )


class Counter(TorchDispatchMode):
    """Counts products of matrices, and the elements of the largest tensor that is returned."""

    def __init__(self):
        super().__init__()
        self.gemms = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "srt_kernels":  # count inside of it
            with self:
                return OPDEFS[f"srt_kernels::{func.overloadpacket.__name__}"]._init_fn(*args)
        out = func(*args, **(kwargs or {}))
        self.gemms += func.overloadpacket.__name__ in GEMMS
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def head_leaves(batch: PackedRollouts, dtype: torch.dtype | None = None) -> list[Tensor]:
    """hidden, weight and bias of a batch as leaves."""
    tensors = (batch.hidden, batch.weight, batch.bias)
    return [tensor.to(dtype or tensor.dtype).clone().requires_grad_() for tensor in tensors]


@functools.cache
def rounds_to_bf16() -> bool:
    """Whether this CPU's GEMMs round fp32 operands to bf16 if they may. CPUs with AMX do."""
    matrix = torch.full((64, 64), 1 + 2.0**-12)
    setting = torch.backends.mkldnn.matmul
    previous = setting.fp32_precision
    setting.fp32_precision = "bf16"
    product = matrix @ torch.eye(64)
    setting.fp32_precision = previous
    return not torch.equal(product, matrix)


@functools.cache
def has_independent_rows() -> bool:
    """Whether this CPU's GEMMs sum a row in one order, whatever the number of rows from 16 on.

    A BLAS may choose its kernel, and so the order, by the number of rows. MKL and oneDNN do not.
    """
    x = torch.randn(67, 517, generator=torch.Generator().manual_seed(0))
    for terms in (48, 64, 331, 517):
        weight = x[:64, :terms].contiguous()
        rows = x[:, :terms].contiguous()
        for multiply in (_multiply_by_blas, _multiply_by_onednn):
            product = multiply(rows, weight)
            for count in (16, 20, 27, 40, 49):
                if not torch.equal(multiply(rows[-count:], weight), product[-count:]):
                    return False
    return True


def _multiply_by_blas(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


def _multiply_by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    if not torch.backends.mkldnn.is_available():
        return torch.mm(x, weight.t())
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], None)
