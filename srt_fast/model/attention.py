"""TODO."""

from __future__ import annotations

import importlib.util

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "srt_varlen"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask,
    *,
    scaling=None,
    dropout=0.0,
    cu_seq_lens_q=None,
    max_length_q=None,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    **kwargs,
):
    """Attention interface of transformers: query [1, heads, T, D], key and value [1, kv_heads, T, D] -> [1, T, heads, D].

    Without cu_seq_lens_q (sampling, with padding and a KV cache) this is transformers' own SDPA attention.
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
            f"{type(module).__name__}: packed attention has no attention softcap, sinks or dropout; "
            f"got softcap={softcap}, sinks={s_aux is not None}, dropout={dropout}"
        )
    if torch.is_autocast_enabled(
        query.device.type
    ):  # rotary embeddings give float32 queries and keys, values stay narrow
        query, key, value = (
            x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value)
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
    if q.is_cuda and q.dtype != torch.float32:
        out = _varlen_cuda(q, k, v, cu_seq_lens_q, max_length_q, scaling, window)
    else:
        out = _per_sequence(q, k, v, cu_seq_lens_q, scaling, sliding_window)
    return out[None], None


def _varlen_cuda(q, k, v, cu, longest, scaling, window):
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            q,
            k,
            v,
            cu,
            cu,
            longest,
            longest,
            softmax_scale=scaling,
            causal=True,
            window_size=window if window[0] >= 0 else (-1, -1),
        )
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        cu,
        cu,
        longest,
        longest,
        scale=scaling,
        window_size=window,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _per_sequence(q, k, v, cu, scaling, sliding_window):
    """Exact causal attention of each sequence alone. Sequences of one length share a call: they need no padding."""
    lengths = cu.diff()
    pieces, order = [], []
    for length in lengths.unique().tolist():
        if length == 0:
            continue
        starts = cu[:-1][lengths == length].long()
        rows = starts[:, None] + torch.arange(length, device=q.device)  # [sequences, length]
        # index_select: its backward is an index_add, several times faster on a CPU than that of advanced indexing
        batch = [
            x.index_select(0, rows.flatten()).view(*rows.shape, *x.shape[1:]).transpose(1, 2)
            for x in (q, k, v)
        ]
        mask = None
        if sliding_window is not None and length > sliding_window:
            distance = torch.arange(length, device=q.device)[:, None] - torch.arange(
                length, device=q.device
            )
            mask = (distance >= 0) & (distance < sliding_window)
        out = scaled_dot_product_attention(
            *batch,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        pieces.append(out.transpose(1, 2).flatten(0, 1))
        order.append(rows.flatten())
    inverse = torch.empty(len(q), dtype=torch.long, device=q.device)
    order = torch.cat(order)
    inverse[order] = torch.arange(len(order), device=q.device)
    return torch.cat(pieces).index_select(0, inverse)


transformers.AttentionInterface.register(ATTENTION, _attention)


transformers.AttentionMaskInterface.register(ATTENTION, sdpa_mask)
