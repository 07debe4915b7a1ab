"""Sources of the gradients by log-probs and entropies: known values, or an objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

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
        return not needs_whole_rollouts(self.objective, self.inputs)

    def gradients(self, part: slice, logprobs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients by the log-probs and entropies of the rows of `part`."""
        inputs = self.inputs.select(part)
        grad_logprob = token_terms(self.objective, logprobs, inputs).grad_logprob
        return grad_logprob, entropy_gradient(self.objective, inputs)


GradientSource = KnownGradient | ObjectiveGradient


def needs_whole_rollouts(objective: Objective, inputs: TokenInputs) -> bool:
    """Whether the gradient of a token needs the log-probs of its whole rollout."""
    has_late_correction = inputs.correction is None
    is_sequence_correction = objective.correction.startswith("sequence")
    return objective.ratio == "sequence" or (is_sequence_correction and has_late_correction)


def entropy_gradient(objective: Objective, inputs: TokenInputs) -> Tensor | None:
    """[n] gradient of the loss by the entropies; None without an entropy term."""
    return -objective.entropy_coef * inputs.weights if objective.entropy_coef > 0 else None
