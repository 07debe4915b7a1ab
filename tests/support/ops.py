"""What tests of the ops share: a batch's lengths, leaves, and a counter of GEMMs. Error bounds are in bounds.py."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from srt_kernels.core.backend import use_triton
from srt_kernels.testing import PackedRollouts

# For the PyTorch path only, or bf16: Triton's interpreter takes the bits of bf16 for an integer.
cpu_path = pytest.mark.skipif(
    use_triton(torch.zeros(1)), reason="this run is of the Triton kernels"
)

# Of a batch's rollouts, 27 tokens in all. Two are empty, two have one token.
LENGTHS = [3, 0, 1, 7, 9, 1, 0, 6]

GEMMS = ("mm", "addmm", "addmm_", "bmm", "_linear_pointwise")


class Counter(TorchDispatchMode):
    """Counts GEMMs (products with two matrices) and the largest tensor that any operation returns."""

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
    """Whether this CPU's GEMMs round fp32 operands to bf16 where the ops allow it. Those with AMX do."""
    matrix = torch.full((64, 64), 1 + 2.0**-12)
    setting = torch.backends.mkldnn.matmul
    previous = setting.fp32_precision
    setting.fp32_precision = "bf16"
    product = matrix @ torch.eye(64)
    setting.fp32_precision = previous
    return not torch.equal(product, matrix)
