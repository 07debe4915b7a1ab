"""What a sampler is to the trainer, and how its output is packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from srt_fast.policy import Policy
from srt_fast.rollout import Rollouts
from srt_fast.sampler.gap import Gap


class SamplerError(RuntimeError):
    """The engine died, ran out of memory, is stuck, or does not compute what the trainer computes. The run can be resumed."""


@dataclass(frozen=True)
class Pending:
    """Rollouts that are being sampled."""

    result: Callable[..., Rollouts]  # waits; signals are noticed meanwhile only with interruptible=True
    cancel: Callable[[], None]  # gives them up; the engine is idle after


class Sampler(Protocol):
    """Token ids in, packed completions with their log-probs out. Raises SamplerError where the engine fails."""

    def sample(self, prompts: list[list[int]], samples: int, *, temperature: float, max_new_tokens: int, top_p: float = 1.0,
               top_k: int = 0, min_p: float = 0.0) -> Rollouts:
        """`samples` completions of each prompt. temperature 0 is greedy, and then log-probs are those at temperature 1;
        else those of the distribution that was sampled from, temperature and truncation included."""

    def sleep(self) -> None:
        """Free what memory the next `sync` can bring back: nothing is sampled until then."""

    def sync(self, policy: Policy) -> None:
        """Take the policy's present weights. Every sample after this call comes from them."""

    def check(self, policy: Policy, prompts: list[list[int]]) -> Gap | None:
        """Compare log-probs with the policy's, on completions of these prompts; None where sampler and policy are one."""

    def close(self) -> None:
        """Give back what the sampler holds; nothing may be called after."""


def pack_completions(completions: list[Tensor], logprobs: list[Tensor], cut: list[bool], prompts: list[list[int]],
                     samples: int) -> Rollouts:
    """Rollouts from completions in prompt order, `samples` per prompt."""
    device = completions[0].device
    lengths = [len(completion) for completion in completions]
    return Rollouts(
        tokens=torch.cat(completions), logprobs=torch.cat(logprobs), prompts=prompts,
        cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
        cu_groups=torch.arange(0, len(completions) + 1, samples, dtype=torch.int32, device=device),
        cut=torch.tensor(cut, device=device))
