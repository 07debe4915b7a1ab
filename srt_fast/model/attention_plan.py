"""Which calls of PyTorch's SDPA compute the attention of a packed row of tokens.

A call takes segments of like lengths. They are padded to the longest one, by at most a quarter. The
results do not depend on the padding: no token sees a padded key, and outputs of padded queries are
dropped.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from srt_fast.transfer import send
from srt_fast.types import Segments

SHORT = 16
"""Segments of at most this length share a call, whatever their length."""


class AttentionCall(NamedTuple):
    """B segments, padded to q queries and k keys. A padded row repeats the segment's last one."""

    segments: int  # B
    query_rows: Tensor  # [B * q] int64, among the T tokens
    key_rows: Tensor  # [B * k] int64, among the T tokens
    mask: Tensor | None  # [B or 1, 1, q, k] bool, True where a query sees a key. None: causal


class AttentionPlan(NamedTuple):
    """The calls, and where each token's output is among theirs."""

    calls: list[AttentionCall]
    places: Tensor  # [T] int64, among the rows of all calls back to back


def plan_attention(segments: Segments, window: int | None, device: torch.device) -> AttentionPlan:
    """The calls for these segments. window: keys that a query sees at most, itself included."""
    queries = torch.tensor(segments.query_lengths)
    keys = torch.tensor(segments.key_lengths)
    query_starts = queries.cumsum(0) - queries
    key_starts = keys.cumsum(0) - keys
    places = torch.empty(int(queries.sum()), dtype=torch.int64)
    rows_before = 0
    tensors: list[Tensor] = []
    counts: list[int] = []
    for members in _like_lengths(segments):
        index = torch.tensor(members)
        query_rows, is_query = _padded_ranges(query_starts[index], queries[index])
        key_rows, _ = _padded_ranges(key_starts[index], keys[index])
        outputs = torch.arange(is_query.numel()).view_as(is_query) + rows_before
        places[query_rows[is_query]] = outputs[is_query]
        rows_before += is_query.numel()
        mask = _mask(keys[index] - queries[index], is_query.shape[1], key_rows.shape[1], window)
        tensors += [query_rows.flatten(), key_rows.flatten(), mask]
        counts.append(len(members))
    *tensors, places = send([*tensors, places], device)
    calls = []
    for count, query_rows, key_rows, mask in zip(
        counts, tensors[::3], tensors[1::3], tensors[2::3], strict=True
    ):
        if segments.key_index is not None:
            key_rows = segments.key_index.index_select(0, key_rows)
        calls.append(AttentionCall(count, query_rows, key_rows, mask if mask.numel() else None))
    return AttentionPlan(calls, places)


def _like_lengths(segments: Segments) -> list[list[int]]:
    """The segments of each call. Those without a shared prompt need no mask and stay apart."""
    calls: dict[tuple[int, int], list[int]] = {}
    for place, (queries, keys) in enumerate(
        zip(segments.query_lengths, segments.key_lengths, strict=True)
    ):
        classes = _length_class(queries), _length_class(keys) if keys > queries else -1
        calls.setdefault(classes, []).append(place)
    return list(calls.values())


def _length_class(length: int) -> int:
    """Lengths of one class differ by less than a quarter, or are at most SHORT."""
    if length <= SHORT:
        return 0
    width = 1 << (length.bit_length() - 3)  # a quarter of the power of two below
    return (length - 1) // width * width


def _padded_ranges(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """[B, longest] int64 rows of ranges, whose last row repeats, and which of them are no padding.

    starts, lengths [B] int64.
    """
    places = torch.arange(int(lengths.max()))
    rows = starts[:, None] + places.minimum(lengths[:, None] - 1)
    return rows, places < lengths[:, None]


def _mask(before: Tensor, queries: int, keys: int, window: int | None) -> Tensor:
    """[B or 1, 1, q, k] bool: whether query i of segment b sees key j. Empty: plain causal.

    before [B]: keys before a segment's first query. Query i stands at key before + i.
    """
    is_plain = not before.any()
    if is_plain and (window is None or keys <= window):
        return torch.empty(0, dtype=torch.bool)
    if (before == before[0]).all():
        before = before[:1]
    distance = before[:, None, None] + torch.arange(queries)[:, None] - torch.arange(keys)
    sees = distance >= 0
    if window is not None:
        sees &= distance < window
    return sees[:, None]
