"""A transformers model's hidden states over rows without padding, reached through its own forward()."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from srt_fast.config import ModelConfig
from srt_fast.integrations.padded import offsets
from srt_fast.model.attention import ATTENTION
from srt_fast.model.policy import Policy
from srt_fast.types import PackedSequences


def pack_rows(ids: Tensor, valid: Tensor, scored: Tensor) -> PackedSequences:
    """Padded rows without their padding: ids [r, L]; valid [r, L] bool, no gaps in a row; scored [r, L] bool, within
    valid and never a row's first token."""
    place = valid.flatten().cumsum(0).view_as(ids) - 1
    return PackedSequences(
        input_ids=ids[valid],
        position_ids=(valid.cumsum(1) - 1)[valid],
        cu_input=offsets(valid.sum(1)),
        row_index=place[scored] - 1,
        targets=ids[scored],
        cu_seqlens=offsets(scored.sum(1)),
    )


def spread(where: Tensor, values: Tensor) -> Tensor:
    """[n] -> the shape of `where`, 0 elsewhere."""
    return values.new_zeros(where.shape).masked_scatter(where, values)


class PaddedPolicy(Policy):
    """For an attention that cannot pack: the model's own forward over rows padded on the right."""

    def hidden(self, input_ids: Tensor, position_ids: Tensor, cu_input: Tensor) -> Tensor:
        """As Policy.hidden: [T, H]."""
        lengths = cu_input.diff()
        valid = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        ids, positions = (
            torch.zeros_like(valid, dtype=t.dtype).masked_scatter(valid, t)
            for t in (input_ids, position_ids)
        )
        out = self.model.base_model(
            input_ids=ids, attention_mask=valid.long(), position_ids=positions, use_cache=False
        )
        return out.last_hidden_state[valid]


def add_fused_forward(model: PreTrainedModel, tokenizer, *, pack: bool = True) -> None:
    """model(fused=f) returns f(policy), where policy.hidden and policy.head are the model's.

    Through the model's forward, because what DDP, autocast and gradient scaling do happens around that. A model with
    attention "sdpa" gets the attention of srt_fast/policy.py, for good (gradient checkpointing runs it once more in
    backward), unless it cannot pack, which is warned of, or `pack` is False. Raises ValueError for an architecture whose
    logits are not its head times its hidden states.
    """
    if (own := model.__dict__.pop("_original_forward", None)) is not None:
        model.forward = own  # accelerate wrapped it in autocast and float32 outputs: those are for the trainer to say
    policy = _policy(model, tokenizer, pack)
    own_forward = model.forward

    @functools.wraps(type(model).forward)  # generate() checks its arguments against this signature
    def forward(self, *args, fused: Callable[[Policy], tuple[Tensor, ...]] | None = None, **kwargs):
        return own_forward(*args, **kwargs) if fused is None else fused(policy)

    model.forward = types.MethodType(forward, model)


def _policy(model: PreTrainedModel, tokenizer, pack: bool) -> Policy:
    config = ModelConfig(autocast="off")  # accelerate has its own
    if model.config._attn_implementation in ("sdpa", ATTENTION):  # ATTENTION: of an earlier trainer
        model.set_attn_implementation(ATTENTION if pack else "sdpa")
    if model.config._attn_implementation != ATTENTION:
        return PaddedPolicy(model, tokenizer, config)
    try:
        return Policy(model, tokenizer, config)
    except ValueError as error:
        model.set_attn_implementation("sdpa")
        policy = PaddedPolicy(model, tokenizer, config)
        warnings.warn(f"rows are padded, which is slower: {error}", stacklevel=5)
        return policy
