"""What tests of the ops share: batches, error budgets, a counter of GEMMs."""

from __future__ import annotations

import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from srt_kernels.core.backend import use_triton

# What is of the PyTorch path, or of bf16, which Triton's interpreter gets wrong (it takes the bits for an integer).
cpu_path = pytest.mark.skipif(
    use_triton(torch.zeros(1)), reason="this run is of the Triton kernels"
)


LENGTHS = [3, 0, 1, 7, 9, 1, 0, 6]  # an empty one first to last but one, ones of one token; N = 27


NATS, RELATIVE = 5e-6, 5e-6  # fp32 budgets: log-probs and entropies in nats, gradients in norm


class Counter(TorchDispatchMode):
    """Counts GEMMs (products with two matrices) and the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.gemms, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "srt_kernels":  # look into it
            with self:
                return OPDEFS[f"srt_kernels::{func.overloadpacket.__name__}"]._init_fn(*args)
        out = func(*args, **(kwargs or {}))
        self.gemms += func.overloadpacket.__name__ in (
            "mm",
            "addmm",
            "addmm_",
            "bmm",
            "_linear_pointwise",
        )
        self.largest = max(
            [self.largest] + [t.numel() for t in (out,) if isinstance(t, torch.Tensor)]
        )
        return out


def head_leaves(batch, dtype=None):
    """hidden, weight and bias of a batch as leaves."""
    return [
        t.to(dtype or t.dtype).clone().requires_grad_()
        for t in (batch.hidden, batch.weight, batch.bias)
    ]
