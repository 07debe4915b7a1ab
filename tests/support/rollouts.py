"""Rollouts and groups for tests of rewards."""

from typing import Any

import torch

from srt_fast.config import REWARD_KINDS
from srt_fast.model.policy import Policy
from srt_fast.rewards import make_reward_function
from srt_fast.rewards.turns import turns_of
from srt_fast.sampling.base import Completion, pack_completions
from srt_fast.types import Groups, Rollouts
from srt_kernels import majority_vote

DTYPES = {"parent": torch.int64}
"""Of optional fields that may be empty."""


def required_params(kind: str) -> dict[str, Any]:
    """The settings without which there is no reward function of this kind."""
    return {"peers": {"files": ["votes.jsonl"]}}.get(kind, {})


EPISODES = [
    kind for kind in REWARD_KINDS if turns_of(make_reward_function(kind, required_params(kind)))
]
"""The kinds of reward functions that take several turns."""


def make_groups(keys: list[int], cu_groups: list[int], **inputs: list) -> Groups:
    """Groups of rollouts of two tokens each. inputs: optional fields of Groups."""
    keys_tensor = torch.tensor(keys, dtype=torch.int64)
    cu_groups_tensor = torch.tensor(cu_groups, dtype=torch.int32)
    return Groups(
        keys=keys_tensor,
        cu_groups=cu_groups_tensor,
        cu_seqlens=2 * torch.arange(len(keys) + 1, dtype=torch.int32),
        logprobs=torch.zeros(2 * len(keys)),
        vote=majority_vote(keys_tensor, cu_groups_tensor),
        **{name: torch.tensor(value, dtype=DTYPES.get(name)) for name, value in inputs.items()},
    )


def random_rollouts(policy: Policy, samples: int, prompts: tuple[str, ...]) -> Rollouts:
    """Random completions of 1, 2, 3 ... tokens."""
    torch.manual_seed(1)
    count = samples * len(prompts)
    completions = []
    for number in range(count):
        tokens = torch.randint(10, 200, (1 + number,))
        completions.append(Completion(tokens, logprobs=torch.zeros(1 + number), truncated=False))
    token_ids = [policy.tokenizer(prompt)["input_ids"] for prompt in prompts]
    return pack_completions(completions, token_ids, samples=samples)
