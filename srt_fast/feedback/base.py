"""What a reward design is to the trainer: a step's groups in, rewards and a mask out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from srt_kernels.majority_vote import Vote


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A step's rollouts as a reward design sees them. R rollouts in P groups, N tokens, on one device."""

    keys: Tensor  # [R] int64, canonical answers' keys, 0: no answer
    cu_groups: Tensor  # [P+1] int32
    cu_seqlens: Tensor  # [R+1] int32
    logprobs: Tensor  # [N] fp32, the sampler's
    vote: Vote  # the groups' majority vote over keys
    correct: Tensor | None  # [R] bool, agreement with gold: only where the design says needs_gold, else None


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What a design gives back."""

    rewards: Tensor  # [R] fp32
    keep: Tensor  # [R] bool, False: the rollout is left out of the loss


class Feedback(Protocol):
    """A reward design. State (frozen labels, running statistics) travels with the checkpoint."""

    needs_gold: bool

    def __call__(self, groups: Groups) -> Reward: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...
