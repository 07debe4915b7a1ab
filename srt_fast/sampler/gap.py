"""The proof that sampler and trainer compute the same log-probs, and what it looks like when they do not.

After every weight sync a few prompts are completed, always the same ones with the same seeds, and both sides score the
tokens. The largest difference is compared with a bar. What is behind a larger one is told from evidence:
- tokens and log-probs are those of the last check to the bit, although the trainer now scores these tokens otherwise:
  the engine did not take the new weights (stale);
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

from srt_fast.logprobs import rollout_logprobs
from srt_fast.policy import Policy
from srt_fast.rollout import Rollouts

SEED = 20260102
ROUNDING = 1e-5  # nats that a deterministic fp32 score of the same tokens may move by without a change of weights
TOKEN_BUDGET = 16384
STALE = ("stale weights: the sampler repeats its tokens and log-probs of the last check to the bit, the trainer's scores of them "
         "have changed. The weight sync had no effect")


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Differences in nats, trainer's log-prob minus sampler's, over the tokens of a check."""

    mean: float  # of their sizes
    max: float
    problem: str | None  # None: below the bar


class GapCheck:
    """Holds the last check, to tell a sampler that did not change. `bar` in nats; dtype: what the sampler computes in."""

    def __init__(self, temperature: float, dtype: torch.dtype, bar: float | None):
        self._temperature, self._dtype, self._bar = temperature, dtype, bar
        self._last: tuple[Rollouts, Tensor] | None = None

    def __call__(self, policy: Policy, rollouts: Rollouts) -> Gap:
        """Compare the policy's scores of these rollouts with the sampler's."""
        ours = self._score(policy, rollouts, self._temperature)
        gap = (ours - rollouts.logprobs).abs()
        last, self._last = self._last, (rollouts, ours)
        worst, bar = gap.max().item(), self._bar_for(policy)
        stale = last is not None and _same(rollouts, last[0]) and (ours - last[1]).abs().max() > ROUNDING
        narrow = self._dtype != torch.float32  # a small update may vanish in the sampler's type
        problem = None
        if not worst <= bar or (stale and not narrow):
            what = STALE if stale else self._explain(policy, rollouts, ours)
            problem = ("the sampler's log-probs are not the trainer's: largest gap "
                       f"{worst:.3g} nats over {len(gap)} tokens (mean {gap.mean():.2g}, bar {bar:g}). It looks like {what}")
        return Gap(mean=gap.mean().item(), max=worst, problem=problem)

    def _bar_for(self, policy: Policy) -> float:
        return self._bar or (1e-3 if policy.compute_dtype == torch.float32 else 0.5)

    def _explain(self, policy: Policy, rollouts: Rollouts, ours: Tensor) -> str:
        difference = rollouts.logprobs - ours
        size = difference.abs().mean().item()
        temperature, left = self._best_temperature(policy, rollouts)
        if left < 0.1 * size and abs(math.log(temperature / self._temperature)) > 0.01:
            return (f"temperature or truncation: the sampler's log-probs are those of temperature {temperature:.3g}, "
                    f"the trainer's of {self._temperature:g}")
        if difference.min() > -0.05 * difference.max():
            return ("temperature or truncation: every token is likelier to the sampler than to the trainer, as where top_p, "
                    "top_k or min_p leave tokens out")
        if self._dtype != policy.compute_dtype:
            return f"wrong dtype: the sampler computes in {self._dtype}, the trainer in {policy.compute_dtype}"
        return ("stale weights or corrupted ones: the sampler holds others than the trainer (no temperature explains the "
                "difference, and both compute in the same dtype)")

    def _best_temperature(self, policy: Policy, rollouts: Rollouts) -> tuple[float, float]:
        """The temperature at which the trainer's scores are nearest to the sampler's, and their mean distance there."""
        centre, width = math.log(self._temperature), math.log(8.0)
        for _ in range(4):  # 8 times either way, then around the best of each grid
            grid = [math.exp(centre + width * i / 8) for i in range(-8, 9)]
            left = [(self._score(policy, rollouts, t) - rollouts.logprobs).abs().mean().item() for t in grid]
            best = min(range(len(grid)), key=left.__getitem__)
            centre, width = math.log(grid[best]), width / 8
        return grid[best], left[best]

    def _score(self, policy: Policy, rollouts: Rollouts, temperature: float) -> Tensor:
        everything = torch.arange(len(rollouts.cut), device=rollouts.cut.device)
        return rollout_logprobs(policy, rollouts, everything, temperature=temperature, token_budget=TOKEN_BUDGET)


def _same(a: Rollouts, b: Rollouts) -> bool:
    return a.tokens.equal(b.tokens) and a.logprobs.equal(b.logprobs)
