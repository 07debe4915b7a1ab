"""Padded batches to packed tokens."""

from __future__ import annotations

import pytest
import torch

from srt_fast.integrations.fused_forward import pack_rows
from srt_fast.integrations.padded import Packed, pack, pack_per_token, scatter_tokens


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_pack(dtype):
    """The example in Packed's docstring. Aligned, a token may lie in the first column."""
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]], dtype=dtype)
    rows, cu_seqlens = pack(mask)
    assert rows.tolist() == [1, 2, 8, 10]
    assert cu_seqlens.tolist() == [0, 2, 2, 4]
    assert rows.dtype == torch.int64
    assert cu_seqlens.dtype == torch.int32
    assert pack(mask, aligned=True).row_index.tolist() == [2, 3, 9, 11]
    assert pack(mask.flip(1), aligned=True).row_index.tolist() == [0, 1, 8, 10]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_pack_of_no_tokens(shape):
    packed = pack(torch.zeros(shape, dtype=torch.bool))
    assert isinstance(packed, Packed)
    assert len(packed.row_index) == 0
    assert packed.cu_seqlens.tolist() == [0] * (shape[0] + 1)


def test_pack_per_token_adds_a_completion_where_shapes_would_be_ambiguous():
    three_tokens = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 0, 0]])
    assert pack_per_token(three_tokens).cu_seqlens.tolist() == [0, 3, 3, 3, 3]
    assert pack_per_token(three_tokens[:2]).cu_seqlens.tolist() == [0, 3, 3]


@pytest.mark.parametrize(
    "mask, message",
    [
        (
            torch.tensor([[0, 1], [1, 1]]),
            "mask: expected zeros in the first column, whose tokens nothing predicts, "
            "got tokens there",
        ),
        (
            torch.ones(3).bool(),
            r"mask: expected a bool or integer tensor of shape \[batch, length\], "
            r"got .*bool of shape \[3\]",
        ),
        (
            torch.ones(2, 3),
            r"mask: expected a bool or integer tensor .* got torch.float32 of shape \[2, 3\]",
        ),
        ([[0, 1]], "mask: expected a bool or integer tensor .* got list"),
    ],
)
def test_pack_refuses(mask, message):
    with pytest.raises(ValueError, match=message):
        pack(mask)


def test_scatter_tokens_is_the_inverse_of_a_mask():
    mask = torch.tensor([[False, True, True], [True, False, False]])
    assert scatter_tokens(mask, torch.tensor([1.0, 2.0, 3.0])).tolist() == [[0, 1, 2], [3, 0, 0]]


def test_pack_rows():
    """A prompt padded on the left, a completion on the right, and another one without padding."""
    ids = torch.tensor([[11, 12, 13, 0], [0, 21, 22, 23]])
    is_target = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 1]]).bool()
    rows = pack_rows(ids, ids > 0, is_target)
    assert rows.input_ids.tolist() == [11, 12, 13, 21, 22, 23]
    assert rows.position_ids.tolist() == [0, 1, 2, 0, 1, 2]
    assert rows.segments.cu_queries.tolist() == [0, 3, 6]
    assert rows.cu_seqlens.tolist() == [0, 1, 3]
    assert rows.row_index.tolist() == [1, 3, 4]
    assert rows.targets.tolist() == [13, 22, 23]
