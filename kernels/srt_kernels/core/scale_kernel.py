"""Triton: a gradient times a factor, in place and in one pass; no pass where the factor is 1."""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import LAUNCH_OPTIONS

BLOCK = 4096  # elements; a thread reads 16 bytes at a time
WARPS = 8
# A few of them for each place on a large GPU. So they end soon where there is nothing to do.
PROGRAMS = 4096


@triton.jit
def scale_kernel(gradient_ptr, factor_ptr, size, programs, BLOCK: tl.constexpr):
    """Multiply gradient [size] by the factor, in fp32. Each program takes every programs-th block.

    Where the factor is 1 nothing else is read. It is read here, so the host does not wait for it.
    """
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        lanes = tl.arange(0, BLOCK)
        first = tl.program_id(0).to(tl.int64) * BLOCK
        for start in range(first, size, programs * BLOCK):
            index = start + lanes
            gradient = tl.load(gradient_ptr + index, mask=index < size, other=0.0)
            scaled = (gradient.to(tl.float32) * factor).to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + index, scaled, mask=index < size)


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor (0-dim fp32). The gradient is contiguous, of any size."""
    assert gradient.is_contiguous(), gradient.stride()
    size = gradient.numel()
    if size == 0:
        return
    programs = min(PROGRAMS, triton.cdiv(size, BLOCK))
    scale_kernel[(programs,)](
        gradient_ptr=gradient,
        factor_ptr=factor,
        size=size,
        programs=programs,
        BLOCK=BLOCK,
        num_warps=WARPS,
        **LAUNCH_OPTIONS,
    )
