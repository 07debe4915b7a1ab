"""Segments of a packed tensor: their ids, their reductions, and slices of a range."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

ALIGNMENT = 128  # elements: even slices begin where loads are aligned


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


def even_slices(total: int, most: int) -> list[slice]:
    """[0, total) in as few slices of at most `most` elements as there can be, of equal size.

    They begin at multiples of 128, or of the largest power of two below it that divides `most`. No
    two sizes differ by more than that.
    """
    unit = math.gcd(most, ALIGNMENT)
    units = -(-total // unit)
    count = -(-total // most)
    bounds = [min(total, unit * (units * place // count)) for place in range(1, count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise([0, *bounds])]
