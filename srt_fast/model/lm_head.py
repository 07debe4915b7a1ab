"""The LM head of a model, as the ops take it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LMHeadParameters:
    """The LM head of a model.

    logits = softcap * tanh(z / softcap) with z = (hidden @ weight.T + bias) / temperature_factor.
    Without a softcap, logits = z.
    """

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    softcap: float | None  # Gemma 2
    temperature_factor: float  # Granite divides logits by it, Cohere multiplies by its inverse


def head_logits(hidden: Tensor, head: LMHeadParameters) -> Tensor:
    """[T, H] -> [T, V] fp32 logits."""
    logits = (hidden @ head.weight.to(hidden.dtype).T).float()
    if head.bias is not None:
        logits += head.bias.float()
    logits /= head.temperature_factor
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits
