"""Gradients by log-probs and entropies: known values, or an objective and which tokens have one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srt_kernels.core.checks import count_distinct, expect
from srt_kernels.core.segments import segment_reduce
from srt_kernels.lm_head.lm_head import LMHead
from srt_kernels.objective.finite import (
    expect_finite,
    first_bad_tokens,
    first_true,
    token_values,
)
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.token_inputs import NORMALIZER, TokenInputs
from srt_kernels.objective.token_terms import token_terms

ROWS_OF_A_CHECK = 1 << 13  # hidden rows that are checked for nan and inf at a time


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
    of_rollouts = needs_whole_rollouts(objective, inputs.correction is not None)
    return _with_neighbours(is_active, objective, inputs, of_rollouts)


def read_tokens(objective: Objective, inputs: TokenInputs) -> Tensor:
    """[N] bool: tokens whose values decide a gradient, if only by a correction that is 0."""
    of_rollouts = needs_whole_rollouts(objective, has_correction=False)
    return _with_neighbours(inputs.advantages != 0, objective, inputs, of_rollouts)


def _with_neighbours(
    is_active: Tensor, objective: Objective, inputs: TokenInputs, of_rollouts: bool
) -> Tensor:
    """[N] bool: these tokens, or all of their rollouts; with a KL or entropy term every token."""
    if objective.kl_coef > 0 or objective.entropy_coef > 0:
        return torch.ones_like(is_active)
    if of_rollouts:
        has_active = segment_reduce(is_active, "max", inputs.cu_seqlens) > 0
        return has_active[inputs.rollout_index]
    return is_active


def active_index(
    objective: Objective, head: LMHead, inputs: TokenInputs, normalizer: Tensor | None
) -> tuple[Tensor, bool]:
    """[n] int64 positions of the active tokens, and whether no two of them share a hidden row.

    Raises ValueError for nan or inf in what the caller gave for tokens that are read, for hidden
    rows of active tokens that are not finite, and for a normalizer that is no size. On a GPU this
    is the one host sync.
    """
    is_active = active_tokens(objective, inputs)
    tokens = len(is_active)
    if tokens == 0:
        return inputs.rollout_index, True
    count = is_active.sum()
    number = torch.ones_like(count) if normalizer is None else normalizer
    is_size = number.isfinite() & (number > 0)
    bad_hidden = first_true(is_active & ~_finite_rows(head))
    own = torch.stack([count, _distinct_rows(is_active, head), is_size.long(), bad_hidden])
    values = token_values(inputs)
    bad_values = first_bad_tokens(values, read_tokens(objective, inputs))
    figures = torch.cat([own, bad_values]).tolist()
    active, distinct, has_size, bad_token, *first_bad = figures
    expect_finite(values, first_bad, inputs.rollout_index)
    expect(bool(has_size), "normalizer", NORMALIZER, normalizer)
    if bad_token < tokens:
        row = bad_token if head.row_index is None else int(head.row_index[bad_token])
        expect(False, "hidden", "finite values", f"nan or inf in hidden row {row}")
    return is_active.nonzero_static(size=active).squeeze(1), distinct == active


def _distinct_rows(is_active: Tensor, head: LMHead) -> Tensor:
    """0-dim int64: how many different hidden rows the active tokens have."""
    if head.row_index is None or head.has_unique_rows:
        return is_active.sum()
    no_row = len(head.hidden)  # of all tokens that are not active
    rows = head.row_index.where(is_active, no_row)
    return count_distinct(rows, no_row + 1) - (~is_active).any().long()


def _finite_rows(head: LMHead) -> Tensor:
    """[N] bool: whether the hidden row of each token is finite."""
    rows = torch.cat([part.isfinite().all(1) for part in head.hidden.split(ROWS_OF_A_CHECK)])
    return rows if head.row_index is None else rows[head.row_index]
