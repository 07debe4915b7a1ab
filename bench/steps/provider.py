"""What a provider of bench/loss.py is, and what its step returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steps.batch import Batch

CLIP = 0.2


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step returns, in the provider's own layout."""

    loss: Tensor  # scalar
    logprobs: Tensor | None  # [n]; None if the provider does not return them
    dhidden: Tensor  # [n, H]
    dweight: Tensor  # [V, H]


Step = Callable[[], StepResult]
LogprobOp = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden [n, H], weight [V, H], targets [n] -> log-probs [n]."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    name: str
    build: Callable[[Batch], Callable[[], StepResult | None]]
    layout: str = "packed"  # or "padded", or "sequences": [R, longest], padded if lengths differ
    objective: str = "grpo"  # or "ce", a bound; or "none", GEMMs alone
    logprobs: Callable[[Batch], Tensor] | None = None  # if its step hides them; not timed


def differentiate(
    loss: Tensor, logprobs: Tensor | None, hidden: Tensor, weight: Tensor
) -> StepResult:
    dhidden, dweight = torch.autograd.grad(loss, (hidden, weight))
    return StepResult(
        loss=loss.detach(),
        logprobs=None if logprobs is None else logprobs.detach(),
        dhidden=dhidden,
        dweight=dweight,
    )
