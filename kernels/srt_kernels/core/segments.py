"""Reductions over the segments of a packed tensor, in a fixed order and without a host sync."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_ids(offsets: Tensor, total: int) -> Tensor:
    """[S+1] offsets -> [total] int64, which segment each element is in. No host sync, as the size is known."""
    segments = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(segments, offsets.diff().long(), output_size=total)


def segment_reduce(values: Tensor, how: str, offsets: Tensor, initial: float = 0.0) -> Tensor:
    """[total] -> [S] fp64, `initial` where a segment is empty. In order of the elements, so the same on every run."""
    if len(offsets) == 1:
        return values.double()  # no segments, so no values either
    return torch.segment_reduce(
        values.double(), how, offsets=offsets.long(), initial=initial, unsafe=True
    )


def ranges(total: int, size: int) -> list[slice]:
    """[0, total) in parts of `size`, the last one perhaps smaller."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
