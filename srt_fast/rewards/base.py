"""What a reward function is: a step's groups in; rewards, a mask, weights out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from srt_fast.config import RewardConfig
from srt_fast.types import Groups, Reward, Rollouts
from srt_kernels import AnswerReader
from srt_kernels.core.segments import segment_ids, segment_reduce
from srt_kernels.groups.majority_vote import votes_per_key

QUESTION = "{prompt}\n{completion}\nIs this solution correct? Answer 1 for yes or 0 for no."
"""What a policy is asked about its own rollout. The task's template and chat template go around
it.
"""


# ---- what a reward function may require beside the vote ----


@dataclass(frozen=True)
class GoldAnswers:
    """Groups.correct: which rollouts agree with the task's gold answers."""


@dataclass(frozen=True, kw_only=True)
class StartLabels:
    """Groups.start_labels and start_shares: the starting model's vote on each prompt, or labels
    from a file.

    samples: completions of a prompt that the starting model votes with. 0: as many as the policy's.
    file: JSON lines with the columns "prompt" (as the task has it) and "label". It replaces the
    votes.
    """

    samples: int = 0
    file: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 0 or (self.samples and self.file):
            raise ValueError(
                "reward.params: samples: expected at least 0, and 0 with a file, "
                f"got {self.samples}"
            )


@dataclass(frozen=True, kw_only=True)
class EMATeacher:
    """Groups.teacher_keys and cu_teacher: answers of a moving average of the policy's weights.

    decay, final_decay: the decay at the start and at the end of the run.
    samples: the teacher's completions of a prompt. 0: as many as the policy's.
    """

    decay: float
    final_decay: float
    samples: int

    def __post_init__(self) -> None:
        is_decay = 0 <= self.decay <= 1 and 0 <= self.final_decay <= 1
        if not (is_decay and self.samples >= 0):
            raise ValueError(
                "reward.params: expected decay and final_decay from 0 to 1 and samples at least 0, "
                f"got decay={self.decay}, final_decay={self.final_decay}, samples={self.samples}"
            )


@dataclass(frozen=True)
class TokenEntropies:
    """Groups.entropies: the entropy of the policy's distribution at each token."""


@dataclass(frozen=True)
class TokenCertainty:
    """Groups.certainty: KL(uniform || policy) at each token. The model's head must have no
    softcap.
    """


@dataclass(frozen=True, kw_only=True)
class SelfJudgement:
    """Groups.judge_scores: the policy's own probability that a rollout is correct.

    question: text with {completion} and optionally {prompt}. The answers are 1 and 0.
    """

    question: str

    def __post_init__(self) -> None:
        check_question(self.question)


Requirement = (
    GoldAnswers | StartLabels | EMATeacher | TokenEntropies | TokenCertainty | SelfJudgement
)


def check_question(question: str) -> None:
    """Raise ValueError for a question without {completion}, or with a placeholder twice."""
    if question.count("{prompt}") > 1 or question.count("{completion}") != 1:
        raise ValueError(
            "reward.params: question: expected {completion} exactly once and {prompt} at most "
            f"once, got {question!r}"
        )


def fill_question(question: str, **values: str) -> str:
    """The question with values in the places of {prompt}, {completion} and {answer}.

    What a value contains is not replaced again. A placeholder without a value stays.
    """
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], question)


class RewardFunction(Protocol):
    """A dataclass whose fields are its settings (reward.params).

    It is a pure function. The trainer remembers labels and teacher weights, and saves them in
    checkpoints. A call must not synchronise with the device.
    """

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """What the function reads beside the vote."""
        ...

    def __call__(self, groups: Groups) -> Reward:
        """The rewards of a step's rollouts."""
        ...


def answer_keys(reader: AnswerReader, rollouts: Rollouts, settings: RewardConfig) -> Tensor:
    """[R] int64: keys of the rollouts' answers, 0 for none.

    A truncated rollout has none, unless reward.truncated is "vote".
    """
    keys = reader.keys(rollouts.tokens, rollouts.cu_seqlens)
    return keys if settings.truncated == "vote" else keys.masked_fill(rollouts.truncated, 0)


RequirementType = TypeVar("RequirementType")


def find_requirement(
    function: RewardFunction, kind: type[RequirementType]
) -> RequirementType | None:
    """The requirement of this kind that the function has, or None."""
    for requirement in function.requires:
        if isinstance(requirement, kind):
            return requirement
    return None


# ---- what reward functions compute with ----


def group_index(groups: Groups) -> Tensor:
    """[R] int64: the group of each rollout."""
    return segment_ids(groups.cu_groups, len(groups.keys))


def answer_votes(groups: Groups) -> Tensor:
    """[R] fp64: how many rollouts of the group gave this rollout's answer. 0 without an answer."""
    ones = torch.ones(len(groups.keys), dtype=torch.float64, device=groups.keys.device)
    votes = votes_per_key(groups.keys, group_index(groups), ones)
    return votes.where(groups.keys != 0, 0.0)


def answer_share(groups: Groups) -> Tensor:
    """[R] fp32: the fraction of the group that gave this rollout's answer. 0 without an answer."""
    sizes = groups.cu_groups.diff()[group_index(groups)]
    return (answer_votes(groups) / sizes).float()


def label_agreement(groups: Groups, labels: Tensor) -> Tensor:
    """[R] fp32: 1 where a rollout's answer is its group's label. labels [P] int64 keys, 0 for
    none.
    """
    agrees = groups.keys == labels[group_index(groups)]
    return (agrees & (groups.keys != 0)).float()


def mean_over_tokens(groups: Groups, values: Tensor) -> Tensor:
    """[R] fp32: the mean of values [N] over each rollout's tokens."""
    lengths = groups.cu_seqlens.diff().clamp_min(1)
    return (segment_reduce(values, "sum", groups.cu_seqlens) / lengths).float()


def keep_all(groups: Groups) -> Tensor:
    """[R] bool, all True: the mask of a reward function that leaves no rollout out."""
    return torch.ones_like(groups.keys, dtype=torch.bool)
