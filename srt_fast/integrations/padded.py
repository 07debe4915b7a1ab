"""From padded batches to packed tokens, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from srt_kernels.core.checks import expect
from srt_kernels.core.segments import segment_ids, segment_reduce


class Packed(NamedTuple):
    """Where the tokens of a padded batch of B completions are.

    Worked example: pack of the mask [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]].
    """

    row_index: Tensor  # [N] int64, places in the flattened batch, each once: [1, 2, 8, 10]
    cu_seqlens: Tensor  # [B+1] int32, where each completion begins: [0, 2, 2, 4]


def pack(mask: Tensor, *, aligned: bool = False) -> Packed:
    """The row_index and cu_seqlens with which srt_kernels' LM head ops take a padded hidden state.

    Example, with input_ids [B, L], mask [B, L] bool and advantages [B]:

        rows, cu_seqlens = pack(mask)
        output = model.model(input_ids, attention_mask=attention_mask)
        hidden = output.last_hidden_state  # [B, L, H]
        loss = linear_policy_loss(
            hidden.flatten(0, 1),
            model.lm_head.weight,
            input_ids[mask],
            advantages,
            cu_seqlens,
            objective,
            row_index=rows,
        ).loss

    What the ops return per token is packed. x[mask] packs a padded tensor x; x[mask] = packed
    writes packed values back.

    Args:
        mask: [B, L] bool or integer, not 0 at the tokens that are trained: those of the
            completions, with the token that ends each. Padding may be anywhere. A completion may be
            empty or have holes (text that a tool wrote).
        aligned: False: row_index is one place before each token, where the model predicts it.
            True: row_index is the token's own place, for hidden states or log-probs that were
            moved already.

    Synchronises with the host for the number of tokens and, unless aligned, for a check.

    Raises:
        ValueError: another shape or dtype, or a token in the first column, which nothing predicts.
    """
    _check_mask(mask)
    mask = mask.bool()
    if not aligned:
        expect(
            not mask[:, :1].any(),
            "mask",
            "zeros in the first column, whose tokens nothing predicts",
            "tokens there",
        )
    places = mask.flatten().nonzero()[:, 0]
    cu_seqlens = lengths_to_offsets(mask.sum(1))
    return Packed(row_index=places if aligned else places - 1, cu_seqlens=cu_seqlens)


def pack_per_token(mask: Tensor) -> Packed:
    """As pack(mask, aligned=True), for ops that take one advantage per token.

    Adds an empty completion at the end if there are as many tokens as completions: srt_kernels
    would take these N advantages for one per completion.
    """
    packed = pack(mask, aligned=True)
    cu_seqlens = packed.cu_seqlens
    if len(packed.row_index) == len(mask):
        packed = packed._replace(cu_seqlens=torch.cat([cu_seqlens, cu_seqlens[-1:]]))
    return packed


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """[S] lengths -> [S+1] int32 offsets: where each segment begins and where the last one ends."""
    return pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def completion_means(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[N] -> [N] fp64: each token gets its completion's mean."""
    means = segment_reduce(values, "sum", cu_seqlens) / cu_seqlens.diff().clamp(min=1)
    return means[segment_ids(cu_seqlens, len(values))]


def scatter_tokens(mask: Tensor, values: Tensor) -> Tensor:
    """[N] packed values -> the shape of `mask` [B, L] bool, 0 outside of it."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _check_mask(mask: Tensor) -> None:
    expected = "a bool or integer tensor of shape [batch, length]"
    expect(isinstance(mask, Tensor), "mask", expected, type(mask).__name__)
    is_whole = not mask.is_floating_point() and not mask.is_complex()
    got = f"{mask.dtype} of shape {list(mask.shape)}"
    expect(is_whole and mask.dim() == 2, "mask", expected, got)
