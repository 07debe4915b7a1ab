"""The LM head of a model, as the ops take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

    @classmethod
    def of(cls, config: Any, weight: Tensor, bias: Tensor | None) -> LMHeadParameters:
        """weight and bias with the softcap and scale of a model's configuration."""
        granite_scale = getattr(config, "logits_scaling", None)
        cohere_scale = getattr(config, "logit_scale", None) or 1.0
        return cls(
            weight=weight,
            bias=bias,
            softcap=getattr(config, "final_logit_softcapping", None),
            temperature_factor=float(granite_scale or 1 / cohere_scale),
        )

    @property
    def op_softcap(self) -> float | None:
        """The softcap as srt_kernels takes it. A model divides by the factor before its softcap,
        srt_kernels after it.
        """
        return None if self.softcap is None else self.softcap * self.temperature_factor


def head_logits(hidden: Tensor, head: LMHeadParameters) -> Tensor:
    """[T, H] -> [T, V] fp32 logits."""
    logits = (hidden @ head.weight.to(hidden.dtype).T).float()
    if head.bias is not None:
        logits += head.bias.float()
    logits /= head.temperature_factor
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits
