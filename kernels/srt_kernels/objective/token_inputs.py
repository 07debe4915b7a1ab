"""What a loss knows of its tokens before their log-probs: checked, and one value per token."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from srt_kernels.core.backend import as_torch, use_triton
from srt_kernels.core.checks import check_offsets, check_tensor, expect
from srt_kernels.core.segments import segment_ids, segment_reduce
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.reduction import token_weights
from srt_kernels.objective.token_loss import sampler_correction

NORMALIZER = "a finite number above 0, or 0 without tokens"
ROLLOUT_SCHEMA = """Tensor advantages, Tensor cu_seqlens, str objective, Tensor? old_logprobs,
Tensor? ref_logprobs, Tensor? sampler_logprobs, float? normalizer, Tensor? normalizer_tensor"""
"""The rollouts' part of a torch.library op's schema. make_token_inputs takes them in this order."""


@dataclass(frozen=True, kw_only=True)
class TokenInputs:
    """What is known of each of n tokens before its log-prob."""

    advantages: Tensor  # [n]
    weights: Tensor  # [n] what the reduction makes of the token
    rollout_index: Tensor  # [n] int64, the rollout of the token; never decreases
    cu_seqlens: Tensor  # [R+1]
    old_logprobs: Tensor | None  # [n]; None: on policy, they are the current ones
    ref_logprobs: Tensor | None  # [n]
    sampler_logprobs: Tensor | None  # [n]; None: the objective has no correction
    correction: Tensor | None  # [n]; None: it needs the log-probs first

    def select(self, index: Tensor | slice) -> TokenInputs:
        """The tokens at `index`, which increases.

        For sequence-level quantities `index` takes all tokens of a rollout or none.
        """
        vectors: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        del vectors["cu_seqlens"]
        for name, vector in vectors.items():
            vectors[name] = None if vector is None else vector[index]
        if isinstance(index, slice):
            offsets = (self.cu_seqlens - index.start).clamp(0, index.stop - index.start)
        else:
            offsets = torch.searchsorted(index, self.cu_seqlens.long())
        return TokenInputs(cu_seqlens=offsets, **vectors)


def make_token_inputs(
    tokens: Tensor,
    dtype: torch.dtype,
    advantages: Tensor,
    cu_seqlens: Tensor,
    objective_json: str,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    normalizer: float | None,
    normalizer_tensor: Tensor | None,
) -> tuple[Objective, TokenInputs]:
    """Check the arguments of a loss over `tokens` [N] and bring them to one value per token.

    dtype: of the log-probs. Arguments as in ROLLOUT_SCHEMA. Raises ValueError.
    """
    objective = Objective.from_json(objective_json)
    logprobs = {
        "old_logprobs": old_logprobs,
        "ref_logprobs": ref_logprobs,
        "sampler_logprobs": sampler_logprobs,
    }
    _check_rollouts(tokens, advantages, cu_seqlens)
    _check_logprobs(objective, tokens, logprobs)
    _check_normalizer(normalizer, normalizer_tensor, tokens)
    rollout_index = segment_ids(cu_seqlens, len(tokens))
    if len(advantages) == len(cu_seqlens) - 1:
        advantages = advantages[rollout_index]
    # Outside the kernels in fp64: see complete_statistics in row_statistics.py.
    is_in_kernels = use_triton(tokens) and dtype == torch.float32
    dtype = torch.float32 if is_in_kernels else torch.float64
    weights = token_weights(
        objective,
        cu_seqlens,
        rollout_index,
        normalizer_tensor if normalizer is None else normalizer,
    )
    inputs = TokenInputs(
        advantages=advantages.detach().to(dtype),
        weights=weights.to(dtype),
        rollout_index=rollout_index,
        cu_seqlens=cu_seqlens,
        correction=None,
        **{
            name: None if tensor is None else tensor.detach().to(dtype)
            for name, tensor in logprobs.items()
        },
    )
    correction = None
    if objective.correction == "none":
        correction = torch.ones(len(tokens), dtype=dtype, device=tokens.device)
    elif inputs.old_logprobs is not None:
        correction = sampler_corrections(objective, inputs.old_logprobs, inputs)
    return objective, replace(inputs, correction=correction)


def sampler_corrections(objective: Objective, old_logprobs: Tensor, inputs: TokenInputs) -> Tensor:
    """[n] capped sampler corrections. old_logprobs [n] and they have no gradient."""
    assert inputs.sampler_logprobs is not None
    log_correction = old_logprobs - inputs.sampler_logprobs
    if objective.correction.startswith("sequence"):
        sums = segment_reduce(log_correction, "sum", inputs.cu_seqlens)
        log_correction = sums[inputs.rollout_index]
    is_mask = objective.correction.endswith("mask")
    return as_torch(sampler_correction)(log_correction, objective.correction_cap, is_mask)


def split_normalizer(normalizer: float | Tensor | None) -> tuple[float | None, Tensor | None]:
    """The normalizer as a number and as a tensor, for an op's schema. One of them is None."""
    if normalizer is None:
        return None, None
    if isinstance(normalizer, Tensor):
        return None, normalizer
    is_number = isinstance(normalizer, int | float)
    expect(is_number, "normalizer", "a number, a tensor or None", type(normalizer).__name__)
    return float(normalizer), None


def check_objective(objective: Objective) -> None:
    expect(isinstance(objective, Objective), "objective", "an Objective", type(objective).__name__)


def _check_rollouts(tokens: Tensor, advantages: Tensor, cu_seqlens: Tensor) -> None:
    check_offsets("cu_seqlens", cu_seqlens, len(tokens), tokens.device)
    check_tensor("advantages", advantages, (None,), "float", tokens.device)
    rollouts = len(cu_seqlens) - 1
    expected = f"shape [{rollouts}] (rollouts) or [{len(tokens)}] (tokens)"
    expect(len(advantages) in (rollouts, len(tokens)), "advantages", expected, len(advantages))


def _check_logprobs(
    objective: Objective, tokens: Tensor, logprobs: dict[str, Tensor | None]
) -> None:
    for name, tensor in logprobs.items():
        if tensor is not None:
            check_tensor(name, tensor, (len(tokens),), "float", tokens.device)
    if objective.kl_coef > 0:
        has_ref = logprobs["ref_logprobs"] is not None
        expect(has_ref, "ref_logprobs", "a tensor with kl_coef above 0", None)
    if objective.correction != "none":
        has_sampler = logprobs["sampler_logprobs"] is not None
        expected = f"a tensor with correction {objective.correction!r}"
        expect(has_sampler, "sampler_logprobs", expected, None)


def _check_normalizer(
    normalizer: float | None, normalizer_tensor: Tensor | None, tokens: Tensor
) -> None:
    """The value of a tensor is checked on a CPU only, because reading it is a host sync.

    linear_policy_loss reads it on a GPU with what else it reads. 0 is valid if there are no tokens:
    their global batch may have none either.
    """
    if normalizer_tensor is not None:
        shape = list(normalizer_tensor.shape)
        expected = "a number or a tensor without dimensions"
        expect(normalizer_tensor.dim() == 0, "normalizer", expected, shape)
        is_here = normalizer_tensor.device == tokens.device
        expect(is_here, "normalizer", f"device {tokens.device}", normalizer_tensor.device)
        normalizer = float(normalizer_tensor) if tokens.device.type == "cpu" else None
    if normalizer is None:
        return
    is_size = normalizer > 0 or (len(tokens) == 0 and normalizer == 0)
    expect(is_size and math.isfinite(normalizer), "normalizer", NORMALIZER, normalizer)
