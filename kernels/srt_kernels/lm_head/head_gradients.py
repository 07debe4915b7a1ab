"""Accumulators for the gradients of an LM head: hidden, weight and bias."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from srt_kernels.core.backend import use_triton
from srt_kernels.lm_head import gemm
from srt_kernels.lm_head.lm_head import LMHead

LEAVES = (0, 1, 3)
"""Places of hidden, weight and bias, the head's leaves, in HEAD_SCHEMA."""


def leaf_dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[torch.dtype]:
    """Types of the leaves. A missing bias has hidden's."""
    return [hidden.dtype, weight.dtype, hidden.dtype if bias is None else bias.dtype]


def empty_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    needs_grad: Sequence[bool],
    dtypes: Sequence[torch.dtype],
) -> list[Tensor]:
    """Uninitialised tensors like HeadGradients.results: [0] for leaves that need no gradient."""
    leaves = (hidden, weight, hidden if bias is None else bias)
    return [
        hidden.new_empty(leaf.shape if needs else (0,), dtype=dtype)
        for leaf, needs, dtype in zip(leaves, needs_grad, dtypes, strict=True)
    ]


class HeadGradients:
    """Sums of the gradients over the chunks: dX [M, H], dW [V, H] and dbias [V]."""

    def __init__(
        self,
        head: LMHead,
        needs_grad: Sequence[bool],
        largest: Tensor,
        dtypes: Sequence[torch.dtype],
    ) -> None:
        """needs_grad, dtypes: of hidden, weight and bias. dtypes are those of the results.

        largest: 0-dim, the largest |dL/dlogprob| at ratios of 1. Dlogits in fp16 are scaled by it.
        """
        needs_dhidden, needs_dweight, needs_dbias = needs_grad
        device = head.hidden.device
        self._dtypes = dtypes
        self._has_chunks = False
        self._dhidden = self._new_dhidden(head) if needs_dhidden else None
        # A CPU rounds dW by parts in the end if its dtype is narrower than the accumulator. Each
        # part is freed when it is rounded, so both are never there whole.
        has_parts = device.type == "cpu" and dtypes[1].itemsize < head.dtype.itemsize
        whole = slice(0, len(head.weight))
        self._parts = gemm.weight_parts(head.weight) if has_parts else [whole]
        self._dweight_parts: list[Tensor] = []
        if needs_dweight:
            width = head.weight.shape[1]
            self._dweight_parts = [
                torch.empty(part.stop - part.start, width, dtype=head.dtype, device=device)
                for part in self._parts
            ]
        self._dbias = None
        if needs_dbias:
            self._dbias = torch.zeros(len(head.weight), dtype=head.dtype, device=device)
        # Dlogits are fp16 in kernels on fp16 weights only; they stay in fp32 otherwise.
        has_fp16_dlogits = use_triton(head.weight) and head.weight.dtype == torch.float16
        self.scale = None  # of the chunks' dlogits
        if has_fp16_dlogits:
            self.scale = _fp16_scale(largest / head.temperature)

    @staticmethod
    def _new_dhidden(head: LMHead) -> Tensor:
        """Zeros [M, H]: in hidden's type if a row is written once and needs no scale or sum."""
        is_written_once = head.has_unique_rows and head.group is None
        has_final_dtype = is_written_once and head.hidden.dtype != torch.float16
        dtype = head.hidden.dtype if has_final_dtype else head.dtype
        return head.hidden.new_zeros(head.hidden.shape, dtype=dtype)

    def add(
        self, head: LMHead, part: slice, x: Tensor, dlogits: Tensor, row_factor: Tensor | None
    ) -> None:
        """Add the chunk of targets[part], in the order of the chunks. No atomics.

        x [C, H]: its hidden rows. dlogits [C, V], to be multiplied by row_factor [C] (None: 1).
        """
        if self._dhidden is not None:
            self._add_dhidden(self._dhidden, head, part, dlogits, row_factor)
        if self._dweight_parts:
            scaled = x if row_factor is None else x * row_factor[:, None]
            for dweight, columns in zip(self._dweight_parts, self._parts, strict=True):
                gemm.dweight_gemm_(
                    dweight,
                    dlogits[:, columns],
                    scaled,
                    is_exact_in_bf16=head.is_exact_in_bf16,
                    accumulate=self._has_chunks,
                )
        if self._dbias is not None:
            if row_factor is None:
                self._dbias += dlogits.sum(0, dtype=head.dtype)
            else:
                self._dbias += dlogits.t() @ row_factor
        self._has_chunks = True

    @staticmethod
    def _add_dhidden(
        dhidden: Tensor, head: LMHead, part: slice, dlogits: Tensor, row_factor: Tensor | None
    ) -> None:
        rows = gemm.dhidden_gemm(dlogits, head.weight, head.is_exact_in_bf16)
        if row_factor is not None:
            rows.mul_(row_factor[:, None])
        rows = rows.to(dhidden.dtype)
        if head.row_index is None:
            dhidden[part] = rows
            return
        index = head.row_index[part]
        if head.has_unique_rows:
            dhidden.index_copy_(0, index, rows)
        elif rows.device.type == "cpu":  # index_add_ has a fixed order on a CPU only
            dhidden.index_add_(0, index, rows)
        else:  # index_put_ has a fixed order on a GPU only
            dhidden.index_put_((index,), rows, accumulate=True)

    def results(self, head: LMHead) -> tuple[Tensor, Tensor, Tensor]:
        """dX (summed over the shards), dW and dbias in their dtypes; [0] for those not needed."""
        gradients = [
            head.hidden.new_empty(0) if gradient is None else gradient
            for gradient in (self._dhidden, self._join_dweight(), self._dbias)
        ]
        if self.scale is not None:
            for gradient in gradients:
                gradient.div_(self.scale)
        if self._dhidden is not None and head.group is not None:
            dist.all_reduce(self._dhidden, group=head.group)
        dhidden, dweight, dbias = [
            gradient.to(dtype) for gradient, dtype in zip(gradients, self._dtypes, strict=True)
        ]
        return dhidden, dweight, dbias

    def _join_dweight(self) -> Tensor | None:
        """dW [V, H]. Several parts are rounded to its dtype and freed, one after the other."""
        if not self._has_chunks:
            for dweight in self._dweight_parts:
                dweight.zero_()
        if not self._dweight_parts:
            return None
        if len(self._dweight_parts) == 1:
            return self._dweight_parts.pop()
        rows = self._parts[-1].stop
        width = self._dweight_parts[0].shape[1]
        joined = self._dweight_parts[0].new_empty(rows, width, dtype=self._dtypes[1])
        for part in reversed(self._parts):
            joined[part] = self._dweight_parts.pop()
        return joined


def _fp16_scale(largest: Tensor) -> Tensor:
    """0-dim fp32 power of two that brings `largest` to between 2 and 4.

    fp16 reaches from 6e-8 to 65504. Above there is room for a ratio of 8192, which is not known
    yet; kernels saturate greater ones (scale_gradient in logits_row.py). Below there is room for
    small probabilities and for tokens of small weight.
    """
    exponent = torch.frexp(largest.float())[1]
    one = torch.ones_like(largest, dtype=torch.float32)
    return torch.ldexp(one, (2 - exponent).clamp(-40, 40))
