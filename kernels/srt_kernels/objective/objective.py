"""Objective: which ratio, surrogate, reduction and KL. Independent parts, and presets by name."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Ratio = Literal["none", "token", "sequence"]
Surrogate = Literal["clip", "cispo", "sapo", "reinforce"]
Reduction = Literal["token", "sequence", "fixed"]
KLEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

CHOICES: dict[str, tuple[str, ...]] = {
    "ratio": get_args(Ratio),
    "surrogate": get_args(Surrogate),
    "reduction": get_args(Reduction),
    "kl": get_args(KLEstimator),
    "correction": get_args(Correction),
}
POSITIVE = ("tau_pos", "tau_neg", "correction_cap")
NON_NEGATIVE = ("clip_low", "clip_high", "kl_coef", "entropy_coef")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a policy-gradient step minimises, from log-probs and advantages A.

    loss = sum over tokens of weight * (correction * policy term + kl_coef * KL - entropy_coef *
    entropy). The reduction makes the weights (token_weights in reduction.py). Bad values raise
    ValueError.

    An Objective may be made inside of a function that torch.compile compiles. Its fields are
    constants there: for each new value the function is compiled again.
    """

    ratio: Ratio = "token"
    """The ratio r. token: exp(logprob - old logprob) of each token. sequence: exp of the mean of
    logprob - old logprob over the completion (GSPO). none: 1."""
    surrogate: Surrogate = "clip"
    """Policy term: a function of SURROGATES in token_loss.py. [x] is x without gradient.
    clip: -min(r A, clamp(r, 1 - clip_low, 1 + clip_high) A), with r at most delta if A < 0.
    cispo: -[min(r, clip_high)] A logprob. clip_high is the greatest ratio itself, at least 1.
    sapo: -4 / tau sigmoid(tau (r - 1)) A, with tau_pos if A > 0, else tau_neg.
    reinforce: -[r] A logprob."""
    reduction: Reduction = "token"
    """token: mean over tokens. sequence: mean over completions of the mean over their tokens.
    fixed: mean over completions of the sum over their tokens, divided by max_length."""
    clip_low: float = 0.2
    """How far below 1 the ratio may go before clip stops the gradient. At most 1."""
    clip_high: float = 0.2
    """How far above 1 the ratio may go (clip), or the greatest ratio itself (cispo)."""
    delta: float | None = None
    """For clip: upper bound of the ratio for negative advantages (dual clip, arXiv 1912.09729)."""
    tau_pos: float = 1.0
    """Temperature of sapo's gate if A > 0."""
    tau_neg: float = 1.05
    """Temperature of sapo's gate otherwise."""
    kl: KLEstimator = "k3"
    """Estimator of KL(policy, reference) from d = logprob - ref logprob
    (joschu.net/blog/kl-approx.html): k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d."""
    kl_coef: float = 0.0
    """Weight of the KL term. Above 0 the loss needs ref_logprobs."""
    kl_bias_correction: bool = False
    """Multiply the KL by the token's ratio, with the ratio's gradient. The estimate is then
    unbiased off policy (DeepSeek-V3.2, arXiv 2512.02556)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, which is subtracted from the loss."""
    max_length: int | None = None
    """The divisor of reduction "fixed". Other reductions do not read it."""
    correction: Correction = "none"
    """Sampler correction c = exp(old logprob - sampler logprob) of a token, or exp of the sum of
    these differences over a completion. Needs sampler_logprobs. truncate: min(c, correction_cap).
    mask: 0 if c > correction_cap, else c."""
    correction_cap: float = 3.0
    """Greatest correction."""

    @property
    def json(self) -> str:
        """The fields as a string, which torch.library ops take as an argument."""
        return self.__dict__["_json"]

    @staticmethod
    @functools.cache
    def from_json(text: str) -> Objective:
        return Objective(**json.loads(text))

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_parts_fit()
        values = [f'"{name}": {_json_value(getattr(self, name))}' for name in FIELDS]
        object.__setattr__(self, "_json", f"{{{', '.join(values)}}}")

    def _check_fields(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        for name in POSITIVE + NON_NEGATIVE:
            _check_number(name, getattr(self, name), positive=name in POSITIVE)
        if self.delta is not None:
            _check_number("delta", self.delta, positive=False)
        if not isinstance(self.kl_bias_correction, bool):
            raise ValueError(
                f"kl_bias_correction: expected a bool, got {self.kl_bias_correction!r}"
            )
        is_length = type(self.max_length) is int and self.max_length >= 1
        if self.max_length is not None and not is_length:
            raise ValueError(
                f"max_length: expected an int of at least 1, or None, got {self.max_length!r}"
            )

    def _check_parts_fit(self) -> None:
        if self.reduction == "fixed" and self.max_length is None:
            raise ValueError(
                "max_length: expected the length that reduction 'fixed' divides by, got None"
            )
        if self.ratio == "none" and self.surrogate != "reinforce":
            raise ValueError(
                "ratio: expected 'token' or 'sequence' with surrogate "
                f"{self.surrogate!r}, got 'none'"
            )
        if self.surrogate == "clip" and self.clip_low > 1:
            raise ValueError(f"clip_low: expected at most 1, got {self.clip_low!r}")
        if self.surrogate == "cispo" and self.clip_high < 1:
            raise ValueError(
                "clip_high: expected a ratio of at least 1 with surrogate 'cispo', "
                f"got {self.clip_high!r}"
            )
        if self.delta is None:
            return
        if self.surrogate != "clip" or self.delta <= 1 + self.clip_high:
            raise ValueError(
                "delta: expected None, or with surrogate 'clip' more than 1 + clip_high = "
                f"{1 + self.clip_high}, got {self.delta!r} with surrogate {self.surrogate!r}"
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Objective:
        """The published objective `name` (PRESETS) with some fields changed.

        Raises ValueError for unknown names.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
        unknown = sorted([name for name in overrides if name not in FIELDS])
        if unknown:
            raise ValueError(
                f"overrides: expected fields among {', '.join(FIELDS)}, got {', '.join(unknown)}"
            )
        return cls(**(PRESETS[name] | overrides))


FIELDS = tuple(field.name for field in fields(Objective))


def _json_value(value: str | float | bool | None) -> str:
    """As json.dumps, which torch.compile cannot trace. A string is one of CHOICES.

    A number that torch.compile has as a symbol becomes a constant, because a set hashes it.
    """
    if isinstance(value, str):
        return f'"{value}"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    [constant] = {value}
    return f"{constant}"


def _check_number(name: str, value: Any, *, positive: bool) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compared, because torch.compile cannot trace isfinite of a number that it has as a symbol.
    is_valid = is_number and (value > 0 if positive else value >= 0) and value < math.inf
    if not is_valid:
        bound = "above" if positive else "of at least"
        raise ValueError(f"{name}: expected a finite number {bound} 0, got {value!r}")


# No preset has a KL or an entropy term. DeepSeekMath's GRPO adds 0.04 k3; TRL's default is 0. The
# entropy bonus of 0.001 in SRT's code is the default of the verl that it forked and is not in the
# paper. Overrides add these terms.
PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath, arXiv 2402.03300; TRL loss_type "grpo"
    "grpo": dict(reduction="sequence"),
    # arXiv 2503.14476: clip-higher, and the mean over all tokens of the global batch
    "dapo": dict(clip_high=0.28),
    # Understanding R1-Zero-like training, arXiv 2503.20783: no length in the denominator; give
    # max_length
    "dr_grpo": dict(reduction="fixed"),
    # TRL loss_type "bnpo": as dapo, but divided by the tokens of each call (leave normalizer out),
    # symmetric clip
    "bnpo": dict(),
    # arXiv 2507.18071
    "gspo": dict(ratio="sequence", reduction="sequence", clip_low=3e-4, clip_high=4e-4),
    # MiniMax-M1, arXiv 2506.13585; cap 5 as in ScaleRL, arXiv 2510.13786
    "cispo": dict(surrogate="cispo", clip_high=5.0),
    # arXiv 2511.20347
    "sapo": dict(surrogate="sapo", reduction="sequence"),
    # Back to basics, arXiv 2402.14740: a completion is one action, so its log-probs are summed:
    # max_length 1
    "rloo": dict(ratio="none", surrogate="reinforce", reduction="fixed", max_length=1),
    # Williams 1992, mean over tokens
    "reinforce": dict(ratio="none", surrogate="reinforce"),
    # Self-rewarded training, arXiv 2505.21444, as its code runs it: PPO clip with dual clip 3, mean
    # over tokens
    "srt": dict(delta=3.0),
}
