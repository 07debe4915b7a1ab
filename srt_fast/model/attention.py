"""Attention over packed sequences, registered with transformers as ATTENTION.

A packed forward pass has no padding. Segments lie back to back in one row of tokens: sequences that
stand alone, or prompts with the completions that share them. A token attends to its segment's keys
(Segments in srt_fast/types.py), up to itself. Three paths compute this (attention_path):

- "flash-attn varlen": flash-attn's kernels, on CUDA where flash-attn is installed;
- "torch varlen_attn": PyTorch's kernels, on CUDA otherwise;
- "per-sequence SDPA": exact attention of each segment through PyTorch's SDPA, on a CPU and for
  float32. Segments of like lengths share a call (srt_fast/model/attention_plan.py).

The two varlen paths take float16 and bfloat16 only.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from srt_fast.model.attention_plan import plan_attention
from srt_fast.types import Segments

ATTENTION = "srt_varlen"
HAS_FLASH_ATTENTION = importlib.util.find_spec("flash_attn") is not None
FLASH_ATTENTION = "flash-attn varlen"
TORCH_VARLEN = "torch varlen_attn"
PER_SEQUENCE = "per-sequence SDPA"


def attention_path(device: torch.device, dtype: torch.dtype) -> str:
    """The path of packed attention for queries of this device and dtype."""
    if device.type != "cuda" or dtype == torch.float32:
        return PER_SEQUENCE
    return FLASH_ATTENTION if HAS_FLASH_ATTENTION else TORCH_VARLEN


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention in the form of transformers' attention interface.

    query [1, heads, T, D], key and value [1, kv_heads, T, D], segments of T tokens. Returns
    [1, T, heads, D] and None for the attention weights.

    Without segments this is transformers' SDPA attention: sampling pads and has a KV cache. Raises
    ValueError for segments with dropout, an attention softcap or attention sinks (s_aux).
    """
    if segments is None and _is_plain_decoding(query, key, attention_mask, dropout, kwargs):
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    if segments is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            sliding_window=sliding_window,
            softcap=softcap,
            s_aux=s_aux,
            **kwargs,
        )
    if softcap is not None or s_aux is not None or dropout:
        raise ValueError(
            f"{type(module).__name__}: expected attention without softcap, sinks and dropout for "
            f"packed sequences, got softcap={softcap}, sinks={s_aux is not None}, "
            f"dropout={dropout}"
        )
    device_type = query.device.type
    if torch.is_autocast_enabled(device_type):
        # Rotary embeddings return float32 queries and keys. Values have the autocast dtype.
        dtype = torch.get_autocast_dtype(device_type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    query, key, value = _tokens_first(query), _tokens_first(key), _tokens_first(value)
    path = attention_path(query.device, query.dtype)
    if path == PER_SEQUENCE:
        out = _per_sequence(query, key, value, segments, scaling, sliding_window)
    else:
        if segments.key_index is not None:
            key = key.index_select(0, segments.key_index)
            value = value.index_select(0, segments.key_index)
        varlen = _flash_varlen if path == FLASH_ATTENTION else _torch_varlen
        out = varlen(query, key, value, segments, scaling, sliding_window)
    return out[None], None


def _is_plain_decoding(
    query: Tensor, key: Tensor, mask: Tensor | None, dropout: float, options: dict[str, Any]
) -> bool:
    """Whether grouped queries on a CPU need no copies of keys and values for each query head.

    transformers makes the copies, because PyTorch's kernels for CUDA take no mask without them.
    """
    is_grouped = query.shape[1] != key.shape[1]
    has_bias = options.get("position_bias") is not None
    on_cpu = query.device.type == "cpu"
    return on_cpu and is_grouped and mask is not None and not has_bias and not dropout


def _tokens_first(states: Tensor) -> Tensor:
    """[1, heads, T, D] -> [T, heads, D]."""
    return states[0].transpose(0, 1)


def _flash_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    # Imported here because the package is optional.
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    return flash_attn_varlen_func(
        query,
        key,
        value,
        segments.cu_queries,
        segments.cu_keys,
        segments.max_queries,
        segments.max_keys,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if sliding_window is None else (sliding_window - 1, 0),
    )


def _torch_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    # Imported here because only CUDA needs it and the import takes seconds.
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        segments.cu_queries,
        segments.cu_keys,
        segments.max_queries,
        segments.max_keys,
        scale=scaling,
        window_size=(-1, 0) if sliding_window is None else (sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)  # a tuple only if the log-sum-exp is asked for
    return out


@torch.compiler.disable()  # its shapes depend on the lengths: it would be compiled often
def _per_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Attention of each segment: [T, heads, D]. query, key and value are [T, heads, D]."""
    plan = segments.plans.get(sliding_window)
    if plan is None:
        plan = plan_attention(segments, sliding_window, query.device)
        segments.plans[sliding_window] = plan
    outputs = []
    for call in plan.calls:
        output = scaled_dot_product_attention(
            _gather(query, call.query_rows, call.segments),
            _gather(key, call.key_rows, call.segments),
            _gather(value, call.key_rows, call.segments),
            attn_mask=call.mask,
            is_causal=call.mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.places)


def _gather(states: Tensor, rows: Tensor, segments: int) -> Tensor:
    """[T, heads, D] -> [segments, heads, length, D], for rows [segments * length].

    Uses index_select: its backward is an index_add. On a CPU that is several times faster than the
    backward of advanced indexing.
    """
    return states.index_select(0, rows).unflatten(0, (segments, -1)).transpose(1, 2)


transformers.AttentionInterface.register(ATTENTION, packed_attention)
transformers.AttentionMaskInterface.register(ATTENTION, sdpa_mask)
