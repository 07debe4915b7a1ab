"""Segments of a packed tensor: their ids, their reductions, and slices of a range."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_ids(offsets: Tensor, total: int) -> Tensor:
    """[total] int64: the segment of each element, from offsets [S+1].

    Does not synchronise with the host, because the size is known.
    """
    segments = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(segments, offsets.diff().long(), output_size=total)


def segment_reduce(values: Tensor, how: str, offsets: Tensor, initial: float = 0.0) -> Tensor:
    """[S] fp64: values [total] reduced over each segment by `how` ("sum", "max", "min").

    Empty segments get `initial`. values may have more dimensions, which the result has, too. Does
    not synchronise with the host.

    The result is the same on every run. A CPU adds in order. A GPU adds in order along a column
    [total, 1], one thread a segment. It adds a vector [total] as a tree, by CUB: one block of
    threads a segment. The tree depends on the chip and on the segment's length. If the segment
    fills a tile of the block, it also depends on where the segment begins in memory.
    """
    if len(offsets) == 1:
        return values.double()  # There are no segments, so there are no values.
    return torch.segment_reduce(
        values.double(), how, offsets=offsets.long(), initial=initial, unsafe=True
    )


def chunk_slices(total: int, size: int) -> list[slice]:
    """[0, total) in slices of `size`. The last one may be smaller."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
