"""Proves that sampler and trainer compute the same log-probs, and diagnoses why they do not.

After every weight sync, the sampler completes a few prompts: always the same ones with the same
seeds. The trainer scores the same tokens. The differences are compared with a bar: the largest
difference in float32, the mean difference in narrower types, where rounding alone may move single
tokens far. The diagnosis, in this order:
- Stale weights. Tokens and log-probs equal those of the last check bit for bit, but the weights
  have changed since, also in the sampler's dtype. This needs no bar, so it shows even if the update
  was tiny.
- Temperature or truncation. The trainer gives the sampler's log-probs at another temperature, or
  every token is likelier to the sampler.
- Wrong dtype. The sampler computes in a narrower dtype than the trainer.
- Otherwise the sampler holds other weights.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.model.policy import Policy
from srt_fast.sampling.base import LogprobMismatch
from srt_fast.types import Rollouts

CHECK_SEED = 20260102
TOKEN_BUDGET = 16384
MAX_MISMATCH_NATS = 1e-3
"""Bar of the largest difference if the trainer computes in float32."""
MEAN_MISMATCH_NATS = 0.1
"""Bar of the mean difference if the trainer computes in a narrower dtype."""
MAX_TEMPERATURE_RATIO = 3.0
"""If sampler and trainer seem further apart than this, other weights are the likelier cause."""
STALE_WEIGHTS = (
    "stale weights: the sampler repeats its tokens and log-probs of the last check to the bit, the "
    "trainer's weights have changed. The weight sync had no effect"
)


class LogprobCheck:
    """Compares a sampler with a policy. Remembers the last check, to detect stale weights.

    Args:
        temperature: The temperature that the rollouts of a check are sampled with.
        sampler_dtype: What the sampler computes in.
        max_logprob_mismatch: Bar of the largest difference, in nats. None: MAX_MISMATCH_NATS in
            float32, no bar in narrower dtypes.
        mean_logprob_mismatch: Bar of the mean difference, in nats. None: MEAN_MISMATCH_NATS in
            narrower dtypes, no bar in float32.
    """

    def __init__(
        self,
        temperature: float,
        sampler_dtype: torch.dtype,
        max_logprob_mismatch: float | None,
        mean_logprob_mismatch: float | None,
    ) -> None:
        self._temperature = temperature
        self._sampler_dtype = sampler_dtype
        self._max_logprob_mismatch = max_logprob_mismatch
        self._mean_logprob_mismatch = mean_logprob_mismatch
        self._last_rollouts: Rollouts | None = None
        self._last_checksums: list[int] = []

    def __call__(self, policy: Policy, rollouts: Rollouts) -> LogprobMismatch:
        """Compare the policy's log-probs of these rollouts with the sampler's."""
        policy_logprobs = self._score(policy, rollouts, self._temperature)
        difference = (policy_logprobs - rollouts.logprobs).abs()
        is_float32 = policy.compute_dtype == torch.float32
        mismatch = LogprobMismatch(
            max=difference.max().item(),
            mean=difference.mean().item(),
            tokens=len(difference),
            max_bar=self._max_logprob_mismatch or (MAX_MISMATCH_NATS if is_float32 else math.inf),
            mean_bar=self._mean_logprob_mismatch
            or (math.inf if is_float32 else MEAN_MISMATCH_NATS),
        )
        if self._is_stale(policy, rollouts):
            return replace(mismatch, cause=STALE_WEIGHTS)
        if not mismatch.is_within_bars():
            return replace(mismatch, cause=self._diagnose(policy, rollouts, policy_logprobs))
        return mismatch

    def _is_stale(self, policy: Policy, rollouts: Rollouts) -> bool:
        """Whether the sampler repeats the last check although the weights have changed.

        More than half of the weight tensors must have changed: a single one may leave all sampled
        tokens and log-probs as they are.
        """
        last_rollouts = self._last_rollouts
        last_checksums = self._last_checksums
        self._last_rollouts = rollouts
        self._last_checksums = self._checksums(policy)
        if last_rollouts is None:
            return False
        pairs = zip(self._last_checksums, last_checksums, strict=True)
        changed = sum(checksum != last_checksum for checksum, last_checksum in pairs)
        return changed > 0.5 * len(last_checksums) and _are_equal(rollouts, last_rollouts)

    def _diagnose(self, policy: Policy, rollouts: Rollouts, policy_logprobs: Tensor) -> str:
        difference = rollouts.logprobs - policy_logprobs
        mean_size = difference.abs().mean().item()
        temperature, residual = self._fit_temperature(policy, rollouts)
        log_ratio = abs(math.log(temperature / self._temperature))
        if residual < 0.1 * mean_size and 0.01 < log_ratio < math.log(MAX_TEMPERATURE_RATIO):
            return (
                "temperature or truncation: the sampler's log-probs are those of temperature "
                f"{temperature:.3g}, the trainer's of {self._temperature:g} (or its head is scaled)"
            )
        if difference.min() > -0.05 * difference.max():
            return (
                "temperature or truncation: every token is likelier to the sampler than to the "
                "trainer, as where top_p, top_k or min_p leave tokens out"
            )
        if self._sampler_dtype != policy.compute_dtype:
            return (
                f"wrong dtype: the sampler computes in {self._sampler_dtype}, the trainer in "
                f"{policy.compute_dtype}"
            )
        return (
            "stale weights or corrupted ones: the sampler holds others than the trainer (no "
            "temperature explains the difference, and both compute in the same dtype)"
        )

    def _fit_temperature(self, policy: Policy, rollouts: Rollouts) -> tuple[float, float]:
        """The temperature at which the trainer's log-probs are nearest to the sampler's.

        Also returns their mean distance there, in nats. Four grids: the first one spans a factor of
        8 either way, each of the others the neighbourhood of the best point before.
        """
        centre = math.log(self._temperature)
        width = math.log(8.0)
        temperature = self._temperature
        residual = math.inf
        for _ in range(4):
            grid = [math.exp(centre + width * step / 8) for step in range(-8, 9)]
            residuals = [self._mean_distance(policy, rollouts, point) for point in grid]
            residual = min(residuals)
            temperature = grid[residuals.index(residual)]
            centre = math.log(temperature)
            width /= 8
        return temperature, residual

    def _mean_distance(self, policy: Policy, rollouts: Rollouts, temperature: float) -> float:
        scores = self._score(policy, rollouts, temperature)
        return (scores - rollouts.logprobs).abs().mean().item()

    def _score(self, policy: Policy, rollouts: Rollouts, temperature: float) -> Tensor:
        """[N] fp32: the policy's log-probs of the rollouts' tokens."""
        all_rollouts = range(len(rollouts.truncated))
        return rollout_logprobs(
            policy, rollouts, all_rollouts, temperature=temperature, token_budget=TOKEN_BUDGET
        )

    def _checksums(self, policy: Policy) -> list[int]:
        """The sum of each weight's bits in the sampler's dtype.

        If it differs from the last one, the weight has changed in that dtype too.
        """
        bits = torch.int32 if self._sampler_dtype == torch.float32 else torch.int16
        checksums = [
            weight.detach().to(self._sampler_dtype).contiguous().view(bits).sum(dtype=torch.int64)
            for _, weight in policy.weights()
        ]
        return torch.stack(checksums).tolist()


def _are_equal(first: Rollouts, second: Rollouts) -> bool:
    return first.tokens.equal(second.tokens) and first.logprobs.equal(second.logprobs)
