"""The product of a saved gradient and the gradient of the loss, in place."""

import pytest
import torch

from srt_kernels.core import autograd
from srt_kernels.core.backend import use_triton

SIZES = [(1,), (5, 3), (67, 13), (0, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("factor", [0.3, 1.0])
def test_one_rounding(dtype, factor, monkeypatch):
    """The product is formed in fp32 and rounded once, where blocks and programs are ragged."""
    monkeypatch.setattr(autograd, "ROWS_AT_A_TIME", 16)
    if use_triton(torch.zeros(1)):
        from srt_kernels.core import scale_kernel

        monkeypatch.setattr(scale_kernel, "BLOCK", 64)
        monkeypatch.setattr(scale_kernel, "PROGRAMS", 3)
    factor = torch.tensor(factor, dtype=torch.promote_types(dtype, torch.float32))
    for size in SIZES:
        gradient = torch.randn(size).to(dtype)
        expected = (gradient.to(factor.dtype) * factor).to(dtype)
        torch.ops.srt_kernels.scale_(gradient, factor)
        assert torch.equal(gradient, expected)
