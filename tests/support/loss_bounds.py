"""Error bounds of linear_policy_loss, from those of log-probs and entropies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srt_kernels import Objective, reference
from srt_kernels.testing import PackedRollouts
from support.bounds import UNIT_ROUNDOFF, HeadBounds

MEANS = ("ratio", "clip_fraction", "kl", "correction")
STEP = 2.0**-14  # nats, of finite differences. Their own error is about this part of a bound.


@dataclass(frozen=True, kw_only=True)
class LossBounds:
    """Bounds of what linear_policy_loss returns, and of the gradients of its loss."""

    loss: float
    logprobs: Tensor  # [N]
    entropies: Tensor  # [N]
    means: dict[str, float]
    gradients: list[Tensor]  # dhidden, dweight and dbias


class Sensitivity:
    """An objective's results in fp64, and their slopes by log-probs.

    Slopes are finite differences of the reference, token by token: detached ratios count, too.
    loss: the loss. grad_logprob, grad_entropy [N]: its gradients by log-probs and entropies.
    """

    def __init__(
        self,
        head: HeadBounds,
        batch: PackedRollouts,
        objective: Objective,
        *,
        normalizer: float | None = None,
        **logprobs: Tensor,
    ):
        """logprobs: those of old_logprobs, ref_logprobs, sampler_logprobs that the loss gets."""
        self._objective = objective
        self._advantages = batch.advantages.double()
        self._cu_seqlens = batch.cu_seqlens
        self._normalizer = normalizer
        self._logprobs = {name: tensor.double() for name, tensor in logprobs.items()}
        self._entropies = head.entropies
        self.grad_logprob, self.grad_entropy, self._results = self._evaluate(head.logprobs)
        self.loss = self._results[0]
        gradient_slopes = []
        result_slopes = []
        for token in torch.eye(len(head.logprobs), dtype=torch.float64):
            gradient, _, results = self._evaluate(head.logprobs + STEP * token)
            gradient_slopes.append((gradient - self.grad_logprob).abs() / STEP)
            result_slopes.append((results - self._results).abs() / STEP)
        self._gradient_slopes = torch.stack(gradient_slopes, 1)  # [N, N]
        self._result_slopes = torch.stack(result_slopes, 1)  # [5, N]
        # The loss before its terms cancel: all of them positive.
        size, *_ = self._run(head.logprobs, -self._advantages.abs(), -head.entropies)
        self._size = torch.maximum(size.abs(), self.loss.abs())

    def _run(self, logprobs: Tensor, advantages: Tensor, entropies: Tensor) -> list[Tensor]:
        """Loss and means."""
        out = reference.policy_loss(
            logprobs,
            advantages,
            self._cu_seqlens,
            self._objective,
            entropies=entropies,
            normalizer=self._normalizer,
            **self._logprobs,
        )
        return [out.loss, *(getattr(out, name) for name in MEANS)]

    def _evaluate(self, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the loss by log-probs and entropies [N]; loss and means [5]."""
        leaves = [tensor.clone().requires_grad_() for tensor in (logprobs, self._entropies)]
        results = self._run(leaves[0], self._advantages, leaves[1])
        gradients = torch.autograd.grad(results[0], leaves, materialize_grads=True)
        values = torch.stack([result.detach().double() for result in results])
        return gradients[0], gradients[1], values

    def bounds(self, head: HeadBounds, scale: float = 1.0) -> LossBounds:
        """Bounds for head's arithmetic. scale: of the loss whose gradients are taken.

        The objective itself takes up to 32 operations a token.
        """
        rounding = 32 * head.u
        gradient_error = self._gradient_slopes @ head.logprob_error
        gradient_error += rounding * self.grad_logprob.abs().max()
        result_errors = self._result_slopes @ head.logprob_error
        loss_error = result_errors[0] + self.grad_entropy.abs() @ head.entropy_error
        mean_rounding = rounding + 2 * UNIT_ROUNDOFF[torch.float32]  # means are fp32
        mean_errors = result_errors[1:] + mean_rounding * (1 + self._results[1:].abs())
        return LossBounds(
            loss=(loss_error + rounding * self._size).item(),
            logprobs=head.logprob_error,
            entropies=head.entropy_error,
            means=dict(zip(MEANS, mean_errors.tolist(), strict=True)),
            gradients=head.gradients(
                scale * self.grad_logprob, scale * self.grad_entropy, scale * gradient_error
            ),
        )
