"""What a model's structure does, whatever the values of its weights.

Numbers cannot show a part whose weights are zero or tiny: a new adapter, a branch that begins as 0,
a convolution that has just been initialised. These checks find it: a graph of gradients has a
weight that is 0, and NaN passes through it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import sdpa_mask

OWN_VALUE = "srt_own_value"


def _own_value(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """Attention in which a token attends to itself alone, in transformers' form."""
    return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2), None


transformers.AttentionInterface.register(OWN_VALUE, _own_value)
transformers.AttentionMaskInterface.register(OWN_VALUE, sdpa_mask)


@contextlib.contextmanager
def without_attention(model: Any) -> Iterator[None]:
    """Inside, attention carries nothing from one position to another."""
    attention = model.config._attn_implementation
    model.set_attn_implementation(OWN_VALUE)
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


@contextlib.contextmanager
def nan_embeddings(model: Any, rows: slice) -> Iterator[None]:
    """Inside, the embeddings [1, T, H] of the tokens `rows` are NaN."""

    def poison(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        is_poisoned = torch.zeros(output.shape[-2], 1, dtype=torch.bool, device=output.device)
        is_poisoned[rows] = True
        return output.masked_fill(is_poisoned, float("nan"))

    handle = model.get_input_embeddings().register_forward_hook(poison)
    try:
        yield
    finally:
        handle.remove()


def trained_beside(model: nn.Module, logits: Tensor, head_logits: Tensor) -> list[str]:
    """Names of trainable parameters that `logits` depend on and `head_logits` do not.

    Left out are those of model.base_model, which makes the hidden states.
    """
    body: Any = model.base_model
    known = {id(parameter) for parameter in body.parameters()} | _leaves(head_logits)
    reached = _leaves(logits)
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in reached and id(parameter) not in known
    ]


def _leaves(tensor: Tensor) -> set[int]:
    """Ids of the tensors that get a gradient from this one's."""
    leaves = set()
    nodes: list[Any] = [tensor.grad_fn]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        nodes += [function for function, _ in node.next_functions]
    return leaves
