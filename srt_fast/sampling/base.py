"""What a sampler is to the trainer, and how its output is packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from srt_fast.config import SamplingConfig
from srt_fast.model.policy import Policy
from srt_fast.sampling.logprob_check import LogprobMismatch
from srt_fast.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How completions are drawn. The names are those of vllm.SamplingParams."""

    n: int = 1
    """Completions of each prompt."""
    temperature: float = 1.0
    """What logits are divided by. 0 is greedy decoding."""
    max_tokens: int
    """Longest completion, in tokens."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this much probability. 1 is off."""
    top_k: int = 0
    """Sample from the k likeliest tokens. 0 is off."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the likeliest one. 0 is off."""

    @classmethod
    def of_training(cls, sampling: SamplingConfig, *, n: int | None = None) -> SamplingParams:
        """How a run samples for training. n: completions of each prompt. None: sampling.group_size."""
        return cls(
            n=sampling.group_size if n is None else n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
        )


class SamplerError(RuntimeError):
    """The engine died, ran out of memory, is stuck, or does not compute what the trainer computes. The run can be resumed."""


@dataclass(frozen=True)
class PendingRollouts:
    """Rollouts that are being sampled."""

    result: Callable[
        ..., Rollouts
    ]  # waits; signals are noticed meanwhile only with interruptible=True
    cancel: Callable[[], None]  # gives them up; the engine is idle after


class Sampler(Protocol):
    """Token ids in, packed completions with their log-probs out. Raises SamplerError where the engine fails."""

    def sample(self, prompts: list[list[int]], params: SamplingParams) -> Rollouts:
        """`params.n` completions of each prompt, with the log-prob of each token.

        Log-probs are those of the distribution that was sampled from, with temperature, top_p, top_k and min_p.
        With temperature 0 they are those at temperature 1.
        """

    def sleep(self) -> None:
        """Free what memory the next `sync` can bring back: nothing is sampled until then."""

    def sync(self, policy: Policy) -> None:
        """Take the policy's present weights. Every sample after this call comes from them."""

    def check(self, policy: Policy, prompts: list[list[int]]) -> LogprobMismatch | None:
        """Compare log-probs with the policy's, on completions of these prompts; None where sampler and policy are one."""

    def close(self) -> None:
        """Give back what the sampler holds; nothing may be called after."""


def pack_completions(
    completions: list[Tensor],
    logprobs: list[Tensor],
    truncated: list[bool],
    prompts: list[list[int]],
    samples: int,
) -> Rollouts:
    """Rollouts from completions in prompt order, `samples` per prompt."""
    device = completions[0].device
    lengths = [len(completion) for completion in completions]
    return Rollouts(
        tokens=torch.cat(completions),
        logprobs=torch.cat(logprobs),
        prompts=prompts,
        cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
        cu_groups=torch.arange(0, len(completions) + 1, samples, dtype=torch.int32, device=device),
        truncated=torch.tensor(truncated, device=device),
    )
