"""Rows of logits that are padded in memory: what lies beyond the vocabulary has no effect."""

import pytest
import torch

from srt_kernels.core.backend import use_triton
from srt_kernels.lm_head.gemm import padded_columns
from srt_kernels.lm_head.gradient_sources import KnownGradient
from srt_kernels.lm_head.lm_head import make_head
from srt_kernels.lm_head.row_statistics import complete_statistics

ROWS, VOCAB_SIZE = 3, 37

pytestmark = pytest.mark.skipif(
    not use_triton(torch.zeros(1)), reason="PyTorch's logits have no padding"
)


def padded(logits):
    """The same logits in rows of 48 numbers, of which those after the vocabulary are nan."""
    buffer = torch.full((ROWS, padded_columns(VOCAB_SIZE)), torch.nan)
    return buffer[:, :VOCAB_SIZE].copy_(logits)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_padding_has_no_effect(softcap):
    from srt_kernels.lm_head import logits_fused_kernel, logits_kernel

    logits = 4 * torch.randn(ROWS, VOCAB_SIZE)
    bias = torch.randn(VOCAB_SIZE)
    targets = torch.tensor([0, 17, VOCAB_SIZE - 1])
    weight = torch.zeros(VOCAB_SIZE, 2)
    head = make_head(torch.zeros(ROWS, 2), weight, targets, bias, softcap=softcap)
    gradients = torch.randn(2, ROWS)
    source = KnownGradient(grad_logprob=gradients[0], grad_entropy=gradients[1])
    results = []
    for copy in (torch.Tensor.clone, padded):
        statistics = logits_kernel.row_statistics(copy(logits), targets, head)
        dlogits, _ = logits_kernel.write_dlogits(
            copy(logits), targets, complete_statistics(statistics, None), *gradients, head, None
        )
        fused = torch.empty(2, ROWS)
        fused_dlogits, _ = logits_fused_kernel.write_dlogits_fused(
            copy(logits), head, source, slice(0, ROWS), *fused, None
        )
        results.append((statistics, dlogits, fused, fused_dlogits))
    for plain, of_padded in zip(*results, strict=True):
        assert plain.isfinite().all() and torch.equal(plain, of_padded)
