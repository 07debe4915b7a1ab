"""Our ops as providers of bench/loss.py, and the bare GEMMs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from srt_kernels import Objective, PolicyLoss, linear_logprob, linear_policy_loss
from steps.batch import Batch
from steps.provider import CLIP, Step, StepResult, differentiate

GRPO = Objective.preset("grpo", clip_low=CLIP, clip_high=CLIP)
GEMM_ROWS = {"cpu": 1024, "cuda": 8192}  # logits of the bare GEMMs are [rows, V]


def ours(batch: Batch) -> Step:
    tokens = batch.packed

    def step() -> StepResult:
        result = _loss(batch, batch.weight)
        return differentiate(result.loss, result.logprobs, tokens.hidden, batch.weight)

    return step


def ours_frozen(batch: Batch) -> Callable[[], None]:
    """The same with a frozen head: no dW."""
    weight = batch.weight.detach()

    def step() -> None:
        torch.autograd.grad(_loss(batch, weight).loss, batch.packed.hidden)

    return step


def ours_logprob(batch: Batch) -> Callable[[], None]:
    """Log-probs without gradient, of as many tokens as are active."""
    hidden, targets = _active_rows(batch)

    @torch.no_grad()
    def step() -> None:
        linear_logprob(hidden, batch.weight, targets)

    return step


def ours_logprob_grad(batch: Batch) -> Callable[[], None]:
    """Log-probs of as many tokens as are active, and the gradients of their sum."""
    hidden, targets = _active_rows(batch)
    hidden.requires_grad_()

    def step() -> None:
        logprobs, _ = linear_logprob(hidden, batch.weight, targets)
        torch.autograd.grad(logprobs.sum(), (hidden, batch.weight))

    return step


def _loss(batch: Batch, weight: Tensor) -> PolicyLoss:
    tokens = batch.packed
    return linear_policy_loss(
        tokens.hidden, weight, tokens.targets, batch.advantages, batch.cu_seqlens, GRPO
    )


def gemms(batch: Batch) -> Callable[[], None]:
    """The three GEMMs that a trainable head needs, over the active rows: the floor.

    x @ W.T, dlogits @ W, dlogits.T @ x.
    """
    weight = batch.weight.detach()
    x, _ = _active_rows(batch)
    rows = min(GEMM_ROWS[x.device.type], len(x))
    logits = x.new_empty(rows, len(weight))
    dhidden = torch.empty_like(x)
    dweight = torch.empty_like(weight)

    def step() -> None:
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            dlogits = torch.mm(part, weight.T, out=logits[: len(part)])
            torch.mm(dlogits, weight, out=dhidden[start : start + rows])
            torch.mm(dlogits.T, part, out=dweight)

    return step


def _active_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states and targets of the first rows, as many as are active."""
    count = batch.active_tokens
    return batch.packed.hidden.detach()[:count], batch.packed.targets[:count]
