"""Gradients by log-probs and entropies: known values, or an objective and which tokens have one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srt_kernels.core.segments import segment_reduce
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.token_inputs import TokenInputs
from srt_kernels.objective.token_terms import token_terms


@dataclass(frozen=True, kw_only=True)
class KnownGradient:
    """Gradients of n rows that are known before their logits."""

    grad_logprob: Tensor  # [n]
    grad_entropy: Tensor | None  # [n]

    @property
    def is_row_local(self) -> bool:
        """The gradient of a row needs no other row."""
        return True

    def gradients(self, part: slice, logprobs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients by the log-probs and entropies of the rows of `part`."""
        grad_entropy = None if self.grad_entropy is None else self.grad_entropy[part]
        return self.grad_logprob[part], grad_entropy


@dataclass(frozen=True, kw_only=True)
class ObjectiveGradient:
    """Gradients of n rows from an objective and the rows' log-probs."""

    objective: Objective
    inputs: TokenInputs

    @property
    def is_row_local(self) -> bool:
        """The gradient of a row needs no other row."""
        has_correction = self.inputs.correction is not None
        return not needs_whole_rollouts(self.objective, has_correction)

    def gradients(self, part: slice, logprobs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients by the log-probs and entropies of the rows of `part`."""
        inputs = self.inputs.select(part)
        grad_logprob = token_terms(self.objective, logprobs, inputs).grad_logprob
        return grad_logprob, entropy_gradient(self.objective, inputs)


GradientSource = KnownGradient | ObjectiveGradient


def needs_whole_rollouts(objective: Objective, has_correction: bool) -> bool:
    """Whether the gradient of a token needs the log-probs of its whole rollout.

    has_correction: the sampler correction is known before the log-probs.
    """
    is_sequence_correction = objective.correction.startswith("sequence")
    return objective.ratio == "sequence" or (is_sequence_correction and not has_correction)


def entropy_gradient(objective: Objective, inputs: TokenInputs) -> Tensor | None:
    """[n] gradient of the loss by the entropies; None without an entropy term."""
    return -objective.entropy_coef * inputs.weights if objective.entropy_coef > 0 else None


def largest_gradient(objective: Objective, inputs: TokenInputs) -> Tensor:
    """0-dim, the largest |dL/dlogprob| at ratios of 1; 1 without tokens."""
    coefficients = objective.entropy_coef + objective.kl_coef
    sizes = inputs.weights * (inputs.advantages.abs() + coefficients)
    return sizes.max() if len(sizes) else sizes.new_ones(())


def active_tokens(objective: Objective, inputs: TokenInputs) -> Tensor:
    """[N] bool: tokens whose loss has a gradient, as far as is known before their log-probs."""
    is_active = inputs.advantages != 0
    if inputs.correction is not None:
        is_active = is_active & (inputs.correction != 0)
    if objective.kl_coef > 0 or objective.entropy_coef > 0:
        return torch.ones_like(is_active)
    if needs_whole_rollouts(objective, inputs.correction is not None):
        has_active = segment_reduce(is_active, "max", inputs.cu_seqlens) > 0
        return has_active[inputs.rollout_index]
    return is_active
