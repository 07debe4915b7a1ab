"""A padded batch to the packed ops: which rows of a padded hidden state predict the tokens of the completions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from srt_kernels.core.checks import expect


class Packed(NamedTuple):
    """Worked example: the mask [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]."""

    row_index: (
        Tensor  # [N] int64, row of hidden.flatten(0, 1) that predicts each token: [1, 2, 8, 10]
    )
    cu_seqlens: Tensor  # [B+1] int32, where each completion begins: [0, 2, 2, 4]


def pack(mask: Tensor, *, aligned: bool = False) -> Packed:
    """What linear_policy_loss and linear_logprob need to take a padded model(...).last_hidden_state directly.

    mask [B, L], bool or integer, not 0 at the tokens that are trained: those of the completions, the one that ends each
    included. Padding may be anywhere, completions may be empty or have holes (what a tool wrote). With input_ids [B, L]:

        rows, cu_seqlens = pack(mask)
        hidden = model.model(input_ids, attention_mask=attention_mask).last_hidden_state  # [B, L, H]
        linear_policy_loss(hidden.flatten(0, 1), model.lm_head.weight, input_ids[mask], advantages, cu_seqlens, objective,
                           row_index=rows).loss.backward()

    mask is bool there, and advantages [B]. What comes back per token is packed; t[mask] packs what is padded, and
    t[mask] = packed brings it back. A token is predicted one column before its own; aligned: in its own, where the
    hidden states (or log-probs) were moved already. One host sync on a GPU for the number of tokens, one for the check.

    Raises ValueError for a mask of another shape or type, and for a token in the first column, which nothing predicts.
    """
    fits = (
        isinstance(mask, Tensor)
        and mask.dim() == 2
        and not mask.is_floating_point()
        and not mask.is_complex()
    )
    got = (
        f"{mask.dtype} of shape {list(mask.shape)}"
        if isinstance(mask, Tensor)
        else type(mask).__name__
    )
    expect(fits, "mask", "a bool or integer tensor of shape [batch, length]", got)
    mask = mask.bool()
    if not aligned:
        expect(
            not mask[:, :1].any(),
            "mask",
            "zeros in the first column, whose tokens nothing predicts",
            "tokens there",
        )
    places = mask.flatten().nonzero()[:, 0]
    return Packed(places if aligned else places - 1, offsets(mask.sum(1)))


def offsets(lengths: Tensor) -> Tensor:
    """[r] -> [r+1] int32, where each segment begins and the last one ends."""
    return pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
