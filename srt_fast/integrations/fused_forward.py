"""Hidden states of packed rows, computed inside a transformers model's own forward().

For trainers that wrap forward(): DDP, autocast and gradient scaling then see the whole loss.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from srt_fast.config import ModelConfig
from srt_fast.integrations.padded import lengths_to_offsets
from srt_fast.model.attention import ATTENTION
from srt_fast.model.policy import Policy
from srt_fast.types import PackedSequences, Segments


def pack_rows(ids: Tensor, valid: Tensor, is_target: Tensor) -> PackedSequences:
    """Padded rows without their padding.

    ids [r, L]. valid [r, L] bool: True at real tokens, without gaps in a row. is_target [r, L]
    bool: within valid, and never the first token of a row.
    """
    lengths = valid.sum(1)
    packed_places = valid.flatten().cumsum(0).view_as(ids) - 1
    return PackedSequences(
        input_ids=ids[valid],
        position_ids=(valid.cumsum(1) - 1)[valid],
        segments=Segments.of_sequences(lengths.tolist(), lengths_to_offsets(lengths)),
        row_index=packed_places[is_target] - 1,
        unique_rows=True,
        targets=ids[is_target],
        cu_seqlens=lengths_to_offsets(is_target.sum(1)),
    )


class PaddedPolicy(Policy):
    """A policy whose attention cannot pack. Runs the model on rows that are padded on the right."""

    def hidden(self, input_ids: Tensor, position_ids: Tensor, segments: Segments) -> Tensor:
        """As Policy.hidden, of sequences alone: [T, H], in the dtype that the model returns."""
        lengths = segments.cu_queries.diff()
        columns = torch.arange(segments.max_queries, device=lengths.device)
        valid = columns < lengths[:, None]
        zeros = torch.zeros_like(valid, dtype=torch.int64)
        output = self.model.base_model(
            input_ids=zeros.masked_scatter(valid, input_ids),
            attention_mask=valid.long(),
            position_ids=zeros.masked_scatter(valid, position_ids),
            use_cache=False,
        )
        return output.last_hidden_state[valid]


def add_fused_forward(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, pack: bool = True
) -> None:
    """Let model(fused=f) return f(policy), where `policy` has the model's hidden states and head.

    model: one of transformers, or a PeftModel of one, whose forward() calls that one's.

    A model with attention "sdpa" gets the attention of srt_fast/model/attention.py and keeps it:
    gradient checkpointing runs the attention again in backward. The model keeps "sdpa" if `pack` is
    False, or, with a warning, if it cannot pack. It then runs padded rows, as does a model that was
    loaded with another attention.

    Raises ValueError for an architecture whose logits are not its head times its hidden states.
    """
    wrapper = model
    model = without_peft(wrapper)
    assert isinstance(model, PreTrainedModel), "the trainers refuse others"
    for module in (wrapper, model):
        # accelerate wraps forward in autocast and casts outputs to float32. The trainer does both.
        unwrapped_forward = module.__dict__.pop("_original_forward", None)
        if unwrapped_forward is not None:
            module.forward = unwrapped_forward
    policy = _make_policy(model, tokenizer, pack)
    model_forward = model.forward

    @functools.wraps(type(model).forward)  # generate() checks its arguments against this signature
    def forward(
        self: PreTrainedModel,
        *args: Any,
        fused: Callable[[Policy], tuple[Tensor, ...]] | None = None,
        **kwargs: Any,
    ) -> Any:
        return model_forward(*args, **kwargs) if fused is None else fused(policy)

    model.forward = types.MethodType(forward, model)


def without_peft(model: nn.Module) -> nn.Module:
    """The model that a PeftModel has adapters in, or the model itself."""
    peft_model: Any = model
    return peft_model.get_base_model() if hasattr(model, "get_base_model") else model


def _make_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pack: bool) -> Policy:
    config = ModelConfig(autocast="off")  # accelerate has its own autocast
    # ATTENTION stands here if an earlier trainer of this model set it.
    if model.config._attn_implementation in ("sdpa", ATTENTION):
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
