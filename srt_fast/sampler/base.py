"""What a sampler is to the trainer, and how its output is packed."""

from __future__ import annotations

from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from srt_fast.policy import Policy
from srt_fast.rollout import Rollouts


class Sampler(Protocol):
    """Token ids in, packed completions with their log-probs out."""

    def sample(self, prompts: list[list[int]], samples: int, *, temperature: float, max_new_tokens: int) -> Rollouts:
        """`samples` completions of each prompt. temperature 0 is greedy, and then log-probs are those at temperature 1."""

    def sync(self, policy: Policy) -> None:
        """Take the policy's present weights. Every sample after this call comes from them."""


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
