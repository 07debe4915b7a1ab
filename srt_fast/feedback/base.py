"""What a reward design is to the trainer: a step's groups in, rewards, a mask and weights out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from srt_kernels.majority_vote import Vote, votes_per_key
from srt_kernels.segments import segment_ids, segment_reduce

NEEDS = ("gold", "start", "teacher", "entropies", "certainty", "judgement", "verification")
"""What a design may ask for beside the vote; evidence.py gets it. "verification" is a second task on the design's rewards."""

QUESTION = "{prompt}\n{completion}\nIs this solution correct? Answer 1 for yes or 0 for no."
"""What a policy is asked about its own rollout; the task's template and chat template are put around it."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A step's rollouts as a reward design sees them. R rollouts in P groups, N tokens, on one device."""

    keys: Tensor  # [R] int64, canonical answers' keys, 0: no answer
    cu_groups: Tensor  # [P+1] int32
    cu_seqlens: Tensor  # [R+1] int32
    logprobs: Tensor  # [N] fp32, the sampler's
    vote: Vote  # the groups' majority vote over keys
    correct: Tensor | None = None  # [R] bool, agreement with gold: "gold"
    start_labels: Tensor | None = None  # [P] int64, keys voted by the starting model or read from a file, 0: none: "start"
    start_shares: Tensor | None = None  # [P] fp32, their shares of that vote
    teacher_keys: Tensor | None = None  # [R'] int64, answers of the moving-average teacher to the same prompts: "teacher"
    cu_teacher: Tensor | None = None  # [P+1] int32, which of them are whose
    entropies: Tensor | None = None  # [N] fp32 nats, of the policy's distribution at each token: "entropies"
    certainty: Tensor | None = None  # [N] fp32 nats, KL of the uniform distribution to that one: "certainty"
    judged: Tensor | None = None  # [R] fp32, the policy's own probability that the rollout is correct: "judgement"

    def group_of(self) -> Tensor:
        """[R] int64: which group each rollout is of."""
        return segment_ids(self.cu_groups, len(self.keys))

    def votes_of_own(self) -> Tensor:
        """[R] fp64: how many of its group gave a rollout's answer; 0 without an answer."""
        ones = torch.ones(len(self.keys), dtype=torch.float64, device=self.keys.device)
        return votes_per_key(self.keys, self.group_of(), ones).where(self.keys != 0, 0.0)

    def share_of_own(self) -> Tensor:
        """[R] fp32: the part of its group that gave a rollout's answer; 0 without an answer."""
        return (self.votes_of_own() / self.cu_groups.diff()[self.group_of()]).float()

    def agrees_with(self, labels: Tensor) -> Tensor:
        """[R] fp32: 1 where a rollout's answer is its group's label; labels [P] int64, 0: none."""
        return ((self.keys == labels[self.group_of()]) & (self.keys != 0)).float()

    def mean_over_tokens(self, values: Tensor) -> Tensor:
        """[R] fp32: the mean of [N] values over each rollout's tokens."""
        return (segment_reduce(values, "sum", self.cu_seqlens) / self.cu_seqlens.diff().clamp_min(1)).float()

    def everyone(self) -> Tensor:
        """[R] bool, all true: the mask of a design that leaves nothing out."""
        return torch.ones_like(self.keys, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What a design gives back."""

    rewards: Tensor  # [R] fp32
    keep: Tensor  # [R] bool, False: the rollout is left out of the loss
    weights: Tensor | None = None  # [R] fp32, multiplies the rollout's advantage, after any normalisation; None: 1
    advantages: Tensor | None = None  # [R] fp32, in place of those that train.advantage makes of the rewards


class Feedback(Protocol):
    """A reward design: a dataclass whose fields are its settings (feedback.params). A pure function of what it is given: what
    has to be remembered (labels, a teacher's weights) is evidence, and travels with the checkpoint. Nothing in a call may
    wait for the device."""

    needs: ClassVar[frozenset[str]]  # of NEEDS

    def __call__(self, groups: Groups) -> Reward: ...


def check_teacher(decay: float, final_decay: float, samples: int) -> None:
    """ValueError for settings that no moving-average teacher can have."""
    if not (0 <= decay <= 1 and 0 <= final_decay <= 1 and samples >= 0):
        raise ValueError("feedback.params: expected decay and final_decay from 0 to 1 and samples at least 0, got "
                         f"decay={decay}, final_decay={final_decay}, samples={samples}")


def check_question(question: str) -> None:
    """ValueError for a question that does not show the solution."""
    if question.count("{prompt}") > 1 or question.count("{completion}") != 1:
        raise ValueError("feedback.params: question: expected {completion} exactly once and {prompt} at most once, "
                         f"got {question!r}")
