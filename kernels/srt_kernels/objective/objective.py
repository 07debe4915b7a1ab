"""Objective: which ratio, which surrogate, which reduction, which KL. Independent parts, and presets by name."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from srt_kernels.objective.token_loss import SURROGATES

CHOICES = {
    "ratio": ("none", "token", "sequence"),
    "surrogate": tuple(SURROGATES),
    "reduction": ("token", "sequence", "fixed"),
    "kl": ("k1", "k2", "k3"),
    "correction": ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
POSITIVE = ("tau_pos", "tau_neg", "correction_cap")
NON_NEGATIVE = ("clip_low", "clip_high", "kl_coef", "entropy_coef")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a policy-gradient step minimises, from log-probs and advantages A.

    loss = sum over tokens of weight * (correction * policy term + kl_coef * KL - entropy_coef * entropy), where the
    reduction makes the weights (token_weights in policy_loss.py). Bad values raise ValueError.
    """

    ratio: Literal["none", "token", "sequence"] = "token"
    """r = exp(logprob - old logprob) of each token; exp of its mean over the completion (GSPO); or 1."""
    surrogate: str = "clip"
    """Policy term, a row of SURROGATES in token_terms.py; [x] is x without gradient.
    clip: -min(r A, clamp(r, 1 - clip_low, 1 + clip_high) A), with r at most delta where A < 0.
    cispo: -[min(r, clip_high)] A logprob: clip_high is the greatest ratio itself, at least 1.
    sapo: -4 / tau sigmoid(tau (r - 1)) A, with tau_pos where A > 0, else tau_neg.
    reinforce: -[r] A logprob."""
    reduction: Literal["token", "sequence", "fixed"] = "token"
    """Mean over tokens; mean over completions of the mean over their tokens; sum over a completion's tokens divided by
    max_length, mean over completions."""
    clip_low: float = 0.2
    """How far below 1 the ratio may go before clip stops the gradient; at most 1."""
    clip_high: float = 0.2
    """How far above 1 (clip), or the greatest ratio itself (cispo)."""
    delta: float | None = None
    """Upper bound of the ratio for negative advantages (dual clip, arXiv 1912.09729); clip only."""
    tau_pos: float = 1.0
    """Temperature of sapo's gate where A > 0."""
    tau_neg: float = 1.05
    """Temperature of sapo's gate elsewhere."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of KL(policy, reference), d = logprob - ref logprob (joschu.net/blog/kl-approx.html):
    k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d."""
    kl_coef: float = 0.0
    """Weight of the KL term; above 0 it needs ref_logprobs."""
    kl_bias_correction: bool = False
    """Multiply the KL by the token's ratio, gradient and all: unbiased off policy (DeepSeek-V3.2, arXiv 2512.02556)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus (subtracted from the loss)."""
    max_length: int | None = None
    """What reduction "fixed" divides by; other reductions do not read it."""
    correction: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "none"
    """Sampler correction c = exp(old logprob - sampler logprob), of a token or of a whole completion (sum of
    differences), needs sampler_logprobs: truncate takes min(c, correction_cap), mask 0 where c > correction_cap."""
    correction_cap: float = 3.0
    """Greatest correction."""

    @property
    def json(self) -> str:
        """For torch.library ops, whose arguments are tensors, numbers and strings."""
        return self._json

    @staticmethod
    @functools.cache
    def from_json(text: str) -> Objective:
        return Objective(**json.loads(text))

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in POSITIVE + NON_NEGATIVE + (("delta",) if self.delta is not None else ()):
            _check_number(name, getattr(self, name), positive=name in POSITIVE)
        if not isinstance(self.kl_bias_correction, bool):
            raise ValueError(
                f"kl_bias_correction: expected a bool, got {self.kl_bias_correction!r}"
            )
        if self.max_length is not None and (
            type(self.max_length) is not int or self.max_length < 1
        ):
            raise ValueError(
                f"max_length: expected an int of at least 1, or None, got {self.max_length!r}"
            )
        self._check_parts_fit()
        object.__setattr__(
            self, "_json", json.dumps(asdict(self))
        )  # once, not where torch.compile traces

    def _check_parts_fit(self):
        if self.reduction == "fixed" and self.max_length is None:
            raise ValueError(
                "max_length: expected the length that reduction 'fixed' divides by, got None"
            )
        if self.ratio == "none" and self.surrogate != "reinforce":
            raise ValueError(
                f"ratio: expected 'token' or 'sequence' with surrogate {self.surrogate!r}, got 'none'"
            )
        if self.surrogate == "clip" and self.clip_low > 1:
            raise ValueError(f"clip_low: expected at most 1, got {self.clip_low!r}")
        if self.surrogate == "cispo" and self.clip_high < 1:
            raise ValueError(
                f"clip_high: expected a ratio of at least 1 with surrogate 'cispo', got {self.clip_high!r}"
            )
        if self.delta is not None and (
            self.surrogate != "clip" or self.delta <= 1 + self.clip_high
        ):
            raise ValueError(
                f"delta: expected None, or with surrogate 'clip' more than 1 + clip_high = {1 + self.clip_high}, "
                f"got {self.delta!r} with surrogate {self.surrogate!r}"
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Objective:
        """The published objective `name` (PRESETS), with some fields changed. Unknown names raise ValueError."""
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(overrides) - set(known))
        if unknown:
            raise ValueError(
                f"overrides: expected fields among {', '.join(known)}, got {', '.join(unknown)}"
            )
        return cls(**(PRESETS[name] | overrides))


def _check_number(name: str, value: Any, *, positive: bool) -> None:
    number = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    )
    if not number or value < 0 or (positive and value == 0):
        raise ValueError(
            f"{name}: expected a finite number {'above' if positive else 'of at least'} 0, got {value!r}"
        )


# No preset has a KL or entropy term: DeepSeekMath's GRPO adds 0.04 k3, TRL's default is 0; the entropy bonus of 0.001
# in SRT's code is the default of the verl it forked and not in the paper. Ask for them with overrides.
PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath, arXiv 2402.03300; TRL loss_type "grpo"
    "grpo": dict(reduction="sequence"),
    # arXiv 2503.14476: clip-higher, and the mean over all tokens of the global batch
    "dapo": dict(clip_high=0.28),
    # Understanding R1-Zero-like training, arXiv 2503.20783: no length in the denominator; give max_length
    "dr_grpo": dict(reduction="fixed"),
    # TRL loss_type "bnpo": as dapo but normalised by the tokens of each call (leave normalizer out), symmetric clip
    "bnpo": dict(),
    # arXiv 2507.18071
    "gspo": dict(ratio="sequence", reduction="sequence", clip_low=3e-4, clip_high=4e-4),
    # MiniMax-M1, arXiv 2506.13585; cap 5 as in ScaleRL, arXiv 2510.13786
    "cispo": dict(surrogate="cispo", clip_high=5.0),
    # arXiv 2511.20347
    "sapo": dict(surrogate="sapo", reduction="sequence"),
    # Back to basics, arXiv 2402.14740: a completion is one action, so log-probs are summed over it: max_length 1
    "rloo": dict(ratio="none", surrogate="reinforce", reduction="fixed", max_length=1),
    # Williams 1992, mean over tokens
    "reinforce": dict(ratio="none", surrogate="reinforce"),
    # Self-rewarded training, arXiv 2505.21444, as its code runs it: PPO clip with dual clip 3, mean over tokens
    "srt": dict(delta=3.0),
}
