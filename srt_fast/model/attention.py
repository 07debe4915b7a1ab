"""Attention over packed sequences, registered with transformers as ATTENTION.

A packed forward pass has no padding. Sequences lie back to back in one row of tokens, and a token
attends only to earlier tokens of its own sequence. Three paths compute this (attention_path):

- "flash-attn varlen": flash-attn's kernels, on CUDA where flash-attn is installed;
- "torch varlen_attn": PyTorch's kernels, on CUDA otherwise;
- "per-sequence SDPA": exact attention of each sequence through PyTorch's SDPA, on a CPU and for
  float32. Sequences of one length share a call.

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
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention in the form of transformers' attention interface.

    query [1, heads, T, D], key and value [1, kv_heads, T, D], cu_seq_lens_q [r+1] int32: where each
    of r sequences begins. Returns [1, T, heads, D] and None for the attention weights.

    Without cu_seq_lens_q this is transformers' SDPA attention: sampling pads and has a KV cache.
    Raises ValueError for dropout, an attention softcap or attention sinks (s_aux).
    """
    if cu_seq_lens_q is None:
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
        out = _per_sequence(query, key, value, cu_seq_lens_q, scaling, sliding_window)
    else:
        assert max_length_q is not None
        varlen = _flash_varlen if path == FLASH_ATTENTION else _torch_varlen
        out = varlen(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window)
    return out[None], None


def _tokens_first(states: Tensor) -> Tensor:
    """[1, heads, T, D] -> [T, heads, D]."""
    return states[0].transpose(0, 1)


def _flash_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    # Imported here because the package is optional.
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    return flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        max_length,
        max_length,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if sliding_window is None else (sliding_window - 1, 0),
    )


def _torch_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    # Imported here because only CUDA needs it and the import takes seconds.
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        cu_seqlens,
        cu_seqlens,
        max_length,
        max_length,
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
    cu_seqlens: Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Attention of each sequence alone: [T, heads, D]. Sequences of one length share a call."""
    lengths = cu_seqlens.diff()
    outputs = []
    positions = []
    for length in lengths.unique().tolist():
        if length == 0:
            continue
        offsets = torch.arange(length, device=query.device)
        starts = cu_seqlens[:-1][lengths == length].long()
        rows = (starts[:, None] + offsets).flatten()
        shape = (len(starts), length)
        mask = None
        if sliding_window is not None and length > sliding_window:
            distance = offsets[:, None] - offsets
            mask = (distance >= 0) & (distance < sliding_window)
        output = scaled_dot_product_attention(
            _gather_sequences(query, rows, shape),
            _gather_sequences(key, rows, shape),
            _gather_sequences(value, rows, shape),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
        positions.append(rows)
    order = torch.cat(positions)
    inverse = torch.empty(len(query), dtype=torch.long, device=query.device)
    inverse[order] = torch.arange(len(order), device=query.device)
    return torch.cat(outputs).index_select(0, inverse)


def _gather_sequences(states: Tensor, rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """[T, heads, D] -> [sequences, heads, length, D], for rows [sequences * length].

    Uses index_select: its backward is an index_add. On a CPU that is several times faster than the
    backward of advanced indexing.
    """
    return states.index_select(0, rows).view(*shape, *states.shape[1:]).transpose(1, 2)


transformers.AttentionInterface.register(ATTENTION, packed_attention)
transformers.AttentionMaskInterface.register(ATTENTION, sdpa_mask)
