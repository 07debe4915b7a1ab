"""What a reward design is to the trainer: a step's groups in, rewards, a mask and weights out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from srt_kernels.majority_vote import Vote, votes_per_key
from srt_kernels.segments import segment_ids


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A step's rollouts as a reward design sees them. R rollouts in P groups, N tokens, on one device."""

    keys: Tensor  # [R] int64, canonical answers' keys, 0: no answer
    cu_groups: Tensor  # [P+1] int32
    cu_seqlens: Tensor  # [R+1] int32
    logprobs: Tensor  # [N] fp32, the sampler's
    vote: Vote  # the groups' majority vote over keys
    correct: Tensor | None  # [R] bool, agreement with gold: only where the design says needs_gold, else None

    def group_of(self) -> Tensor:
        """[R] int64: which group each rollout is of."""
        return segment_ids(self.cu_groups, len(self.keys))

    def share_of_own(self) -> Tensor:
        """[R] fp32: the part of its group that gave a rollout's answer; 0 without an answer."""
        group, ones = self.group_of(), torch.ones(len(self.keys), dtype=torch.float64, device=self.keys.device)
        votes = votes_per_key(self.keys, group, ones) / self.cu_groups.diff()[group]
        return votes.where(self.keys != 0, 0.0).float()


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What a design gives back."""

    rewards: Tensor  # [R] fp32
    keep: Tensor  # [R] bool, False: the rollout is left out of the loss
    weights: Tensor | None = None  # [R] fp32, multiplies the rollout's advantage, after any normalisation; None: 1


class Feedback(Protocol):
    """A reward design: a dataclass whose fields are its settings (feedback.params). State (frozen labels, running
    statistics) travels with the checkpoint. Nothing in a call may wait for the device."""

    needs_gold: ClassVar[bool]

    def __call__(self, groups: Groups) -> Reward: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class Stateless:
    """A design without labels that are gold and without state."""

    needs_gold: ClassVar[bool] = False

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        if state:
            raise ValueError(f"feedback state: expected none for {type(self).__name__}, got {sorted(state)}")
