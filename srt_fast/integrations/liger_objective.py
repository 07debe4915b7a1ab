"""Settings of Liger's fused linear GRPO loss, and the Objective of srt_kernels that they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srt_kernels import Objective
from srt_kernels.core.checks import expect

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # losses with a clipped ratio
LOSS_TYPES = (*CLIPPED, "cispo", "sapo", "vespo")
LEVELS = ("token", "sequence")
NON_NEGATIVE = ("beta", "epsilon_low", "epsilon_high")
POSITIVE = ("temperature", "sapo_temperature_pos", "sapo_temperature_neg")
MIN_LOG_WEIGHT = math.log(1e-8)  # lower bound of vespo's log-weights, as in VESPO's own code
MAX_LOG_WEIGHT = 20.0


@dataclass(eq=False, repr=False)
class LigerSettings:
    """Arguments of LigerFusedLinearGRPOLoss, in its order and with its defaults."""

    beta: float = 0.04
    """Weight of the KL to the reference (estimator k3)."""
    compiled: bool = True
    """Ignored: nothing is compiled."""
    use_ref_model: bool = True
    """False: no KL, whatever beta is. Its metric is then 0."""
    chunk_size: int = 1
    """Ignored: srt_kernels picks how many rows of logits exist at a time. Results do not depend on
    it."""
    epsilon_low: float = 0.2
    """How far below 1 the ratio may go."""
    epsilon_high: float = 0.2
    """How far above 1 the ratio may go. With "cispo" the greatest ratio itself."""
    loss_type: str = "dapo"
    """One of LOSS_TYPES."""
    max_completion_length: int | None = None
    """What "dr_grpo" divides a completion's sum by. Other losses do not read it."""
    importance_sampling_level: str = "token"
    """"token": the ratio of each token. "sequence": exp of the completion's mean log-ratio (GSPO),
    for CLIPPED losses only."""
    sapo_temperature_pos: float = 1.0
    """Temperature of sapo's gate for positive advantages."""
    sapo_temperature_neg: float = 1.05
    """Temperature of sapo's gate for other advantages."""
    temperature: float = 1.0
    """What logits are divided by."""
    delta: float | None = None
    """Upper bound of the unclipped ratio, for CLIPPED losses."""
    use_bias_correction_kl: bool = False
    """Multiply the KL by the token's ratio."""
    vespo_k_pos: float = 2.0
    """vespo weighs a completion by e^lambda w^k e^(-lambda w), with its summed ratio w. This is k
    for advantages that are not negative."""
    vespo_lambda_pos: float = 3.0
    """lambda for advantages that are not negative."""
    vespo_k_neg: float = 3.0
    """k for negative advantages."""
    vespo_lambda_neg: float = 2.0
    """lambda for negative advantages."""

    @property
    def has_kl(self) -> bool:
        """Whether the loss has a KL term."""
        return self.beta != 0 and self.use_ref_model

    @property
    def has_coefficients(self) -> bool:
        """Whether the policy term is -[c] advantage logprob with policy_coefficients c.

        These losses have no surrogate in Objective.
        """
        return self.loss_type == "vespo" or (self.loss_type == "cispo" and self.epsilon_high < 1)


def objective_of(settings: LigerSettings) -> Objective:
    """The Objective of the settings as they are now. Raises ValueError for a refused setting."""
    _check_choices(settings)
    _check_numbers(settings)
    is_sequence_mean = settings.loss_type in ("grpo", "sapo")
    parts: dict[str, Any] = {"reduction": "sequence" if is_sequence_mean else "token"}
    if settings.has_kl:
        parts["kl_coef"] = settings.beta
        parts["kl_bias_correction"] = settings.use_bias_correction_kl
    if settings.has_coefficients:
        return Objective(ratio="none", surrogate="reinforce", **parts)
    if settings.loss_type == "cispo":
        return Objective(surrogate="cispo", clip_high=settings.epsilon_high, **parts)
    if settings.loss_type == "sapo":
        return Objective(
            surrogate="sapo",
            tau_pos=settings.sapo_temperature_pos,
            tau_neg=settings.sapo_temperature_neg,
            **parts,
        )
    clip_high, delta = _upper_bounds(settings)
    return Objective(
        ratio=settings.importance_sampling_level,  # pyright: ignore[reportArgumentType]
        clip_low=min(settings.epsilon_low, 1.0),  # ratios are positive
        clip_high=clip_high,
        delta=delta,
        **parts,
    )


def _check_choices(settings: LigerSettings) -> None:
    loss_type = settings.loss_type
    level = settings.importance_sampling_level
    allowed_types = f"one of {', '.join(LOSS_TYPES)}"
    allowed_levels = f"one of {', '.join(LEVELS)}"
    expect(loss_type in LOSS_TYPES, "loss_type", allowed_types, repr(loss_type))
    expect(level in LEVELS, "importance_sampling_level", allowed_levels, repr(level))
    if level == "token":
        return
    expected = f"'token' with loss_type {loss_type!r}"
    expect(loss_type in CLIPPED, "importance_sampling_level", expected, repr(level))
    corrects_kl = settings.use_bias_correction_kl and settings.has_kl
    expected = f"False with importance_sampling_level {level!r} and a KL"
    expect(not corrects_kl, "use_bias_correction_kl", expected, True)


def _check_numbers(settings: LigerSettings) -> None:
    for name in NON_NEGATIVE:
        value = getattr(settings, name)
        is_valid = isinstance(value, int | float) and 0 <= value < math.inf
        expect(is_valid, name, "a finite number of at least 0", repr(value))
    for name in POSITIVE:
        value = getattr(settings, name)
        is_valid = isinstance(value, int | float) and 0 < value < math.inf
        expect(is_valid, name, "a finite number above 0", repr(value))
    delta = settings.delta
    is_valid = delta is None or 1 <= delta < math.inf
    expect(is_valid, "delta", "None or a finite number of at least 1", delta)
    if settings.loss_type == "dr_grpo":
        length = settings.max_completion_length
        expected = "more than 0 with loss_type 'dr_grpo'"
        expect((length or 0) > 0, "max_completion_length", expected, length)


def _upper_bounds(settings: LigerSettings) -> tuple[float, float | None]:
    """clip_high and delta of the Objective.

    In an Objective clip_high bounds the ratios of positive advantages only, and delta, which is
    larger, those of negative advantages. Liger's min(min(r, delta) A, clip(r) A) takes the smaller
    bound for positive advantages and the larger one for negative advantages.
    """
    if settings.delta is None:
        return settings.epsilon_high, None
    clip_high = min(settings.epsilon_high, settings.delta - 1)
    just_above = math.nextafter(1 + clip_high, math.inf)
    return clip_high, max(settings.delta, 1 + settings.epsilon_high, just_above)


def clipped_tokens(settings: LigerSettings, log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """[N] bool: the tokens that Liger counts as clipped. It counts none for delta, sapo and vespo.

    log_ratio [N], advantages [N].
    """
    is_positive = advantages > 0
    is_negative = advantages < 0
    ratio = log_ratio.exp()
    if settings.loss_type == "cispo":
        return is_positive & (ratio > settings.epsilon_high)
    if settings.loss_type not in CLIPPED:
        return torch.zeros_like(is_positive)
    is_high = ratio > 1 + settings.epsilon_high
    is_low = ratio < 1 - settings.epsilon_low
    return is_positive & is_high | is_negative & is_low


def vespo_coefficients(settings: LigerSettings, log_weights: Tensor, advantages: Tensor) -> Tensor:
    """[N] e^lambda w^k e^(-lambda w) of each token's completion.

    log_weights [N]: log w, within MIN_LOG_WEIGHT and MAX_LOG_WEIGHT. advantages [N].
    """
    is_negative = advantages < 0
    power = torch.where(is_negative, settings.vespo_k_neg, settings.vespo_k_pos)
    rate = torch.where(is_negative, settings.vespo_lambda_neg, settings.vespo_lambda_pos)
    rate = rate.clamp(min=1e-4)
    log_coefficients = rate + power * log_weights - rate * log_weights.exp()
    return log_coefficients.exp().nan_to_num(posinf=0.0)
