"""The proof that sampler and trainer compute the same log-probs, and what it looks like when they do not.

After every weight sync a few prompts are completed, always the same ones with the same seeds, and both sides score the
tokens. The differences are compared with a bar: the largest one in float32; the mean in narrower types, where single
tokens may be far apart by rounding alone. What is behind a gap is told from evidence:
- tokens and log-probs are those of the last check to the bit, although weights have changed since, also in the sampler's
  type: the engine did not take the new weights (stale). This needs no bar: it shows however small the update was;
- at another temperature the trainer gives the sampler's log-probs, or every token is likelier to the sampler:
  temperature or truncation;
- the engine computes in a narrower type than the trainer;
- none of these: the engine holds other weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.model.policy import Policy
from srt_fast.types import Rollouts

SEED = 20260102
TOKEN_BUDGET = 16384
MAX_MISMATCH, MEAN_MISMATCH = 1e-3, 0.1  # nats; in float32, in narrower types
FAR = 3.0  # a sampler whose temperature seems further off than this factor rather has other weights
STALE = (
    "stale weights: the sampler repeats its tokens and log-probs of the last check to the bit, the trainer's weights have "
    "changed. The weight sync had no effect"
)


@dataclass(frozen=True, kw_only=True)
class LogprobMismatch:
    """Differences in nats, trainer's log-prob minus sampler's, over the tokens of a check."""

    mean: float  # of their sizes
    max: float
    problem: str | None  # None: below the bar


class LogprobCheck:
    """Holds the last check, to tell a sampler that did not change. dtype: what the sampler computes in.

    max_logprob_mismatch, mean_logprob_mismatch in nats; None: MAX_MISMATCH in float32, MEAN_MISMATCH in narrower types.
    """

    def __init__(
        self,
        temperature: float,
        dtype: torch.dtype,
        max_logprob_mismatch: float | None,
        mean_logprob_mismatch: float | None,
    ):
        self._temperature, self._dtype, self._max_gap, self._mean_gap = (
            temperature,
            dtype,
            max_logprob_mismatch,
            mean_logprob_mismatch,
        )
        self._last: tuple[Rollouts, list[int]] | None = None

    def __call__(self, policy: Policy, rollouts: Rollouts) -> LogprobMismatch:
        """Compare the policy's scores of these rollouts with the sampler's."""
        ours = self._score(policy, rollouts, self._temperature)
        gap, sums = (ours - rollouts.logprobs).abs(), self._sums(policy)
        last, self._last = self._last, (rollouts, sums)
        changed = (
            0
            if last is None
            else sum(a != b for a, b in zip(sums, last[1], strict=True)) / len(sums)
        )
        stale = changed > 0.5 and _same(
            rollouts, last[0]
        )  # half of the tensors: one alone may leave all tokens as they are
        largest, mean = gap.max().item(), gap.mean().item()
        float32 = policy.compute_dtype == torch.float32
        max_logprob_mismatch = self._max_gap or (MAX_MISMATCH if float32 else math.inf)
        mean_logprob_mismatch = self._mean_gap or (math.inf if float32 else MEAN_MISMATCH)
        problem = None
        if stale or not (largest <= max_logprob_mismatch and mean <= mean_logprob_mismatch):
            what = STALE if stale else self._explain(policy, rollouts, ours)
            bars = ", ".join(
                f"{name} {bar:g}"
                for name, bar in (
                    ("largest", max_logprob_mismatch),
                    ("mean", mean_logprob_mismatch),
                )
                if bar < math.inf
            )
            problem = (
                f"the sampler's log-probs are not the trainer's: over {len(gap)} tokens the largest gap is {largest:.3g} "
                f"nats, the mean {mean:.3g} (bars: {bars}). It looks like {what}"
            )
        return LogprobMismatch(mean=mean, max=largest, problem=problem)

    def _explain(self, policy: Policy, rollouts: Rollouts, ours: Tensor) -> str:
        difference = rollouts.logprobs - ours
        size = difference.abs().mean().item()
        temperature, left = self._best_temperature(policy, rollouts)
        off = abs(math.log(temperature / self._temperature))
        if left < 0.1 * size and 0.01 < off < math.log(FAR):
            return (
                f"temperature or truncation: the sampler's log-probs are those of temperature {temperature:.3g}, "
                f"the trainer's of {self._temperature:g} (or its head is scaled)"
            )
        if difference.min() > -0.05 * difference.max():
            return (
                "temperature or truncation: every token is likelier to the sampler than to the trainer, as where top_p, "
                "top_k or min_p leave tokens out"
            )
        if self._dtype != policy.compute_dtype:
            return f"wrong dtype: the sampler computes in {self._dtype}, the trainer in {policy.compute_dtype}"
        return (
            "stale weights or corrupted ones: the sampler holds others than the trainer (no temperature explains the "
            "difference, and both compute in the same dtype)"
        )

    def _best_temperature(self, policy: Policy, rollouts: Rollouts) -> tuple[float, float]:
        """The temperature at which the trainer's scores are nearest to the sampler's, and their mean distance there."""
        centre, width = math.log(self._temperature), math.log(8.0)
        for _ in range(4):  # 8 times either way, then around the best of each grid
            grid = [math.exp(centre + width * i / 8) for i in range(-8, 9)]
            left = [
                (self._score(policy, rollouts, t) - rollouts.logprobs).abs().mean().item()
                for t in grid
            ]
            best = min(range(len(grid)), key=left.__getitem__)
            centre, width = math.log(grid[best]), width / 8
        return grid[best], left[best]

    def _score(self, policy: Policy, rollouts: Rollouts, temperature: float) -> Tensor:
        everything = torch.arange(len(rollouts.truncated), device=rollouts.truncated.device)
        return rollout_logprobs(
            policy, rollouts, everything, temperature=temperature, token_budget=TOKEN_BUDGET
        )

    def _sums(self, policy: Policy) -> list[int]:
        """A sum of each weight's bits in the sampler's type: another one says that the weight has changed there too."""
        bits = torch.int32 if self._dtype == torch.float32 else torch.int16
        return torch.stack(
            [
                weight.detach().to(self._dtype).contiguous().view(bits).sum(dtype=torch.int64)
                for _, weight in policy.weights()
            ]
        ).tolist()


def _same(a: Rollouts, b: Rollouts) -> bool:
    return a.tokens.equal(b.tokens) and a.logprobs.equal(b.logprobs)
