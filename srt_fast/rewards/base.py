"""What a reward function is: a step's groups in; rewards, a mask, weights out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from srt_fast.config import RewardConfig
from srt_fast.types import Groups, Reward, Rollouts
from srt_kernels import AnswerReader, Vote
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
class PeerVotes:
    """Groups.peer_labels and peer_shares: other models' votes on each prompt.

    files: one for each of K peers, with rows of `srt-fast vote --out` ("group", "majority",
    "share") or of labels ("prompt", "label", and optionally "share").
    """

    files: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("reward.params: files: expected at least one file of votes, got none")


@dataclass(frozen=True, kw_only=True)
class EMATeacher:
    """Groups.teacher_keys and cu_teacher: answers of a moving average of the policy's weights.

    decay, final_decay: the decay at the start and at the end of the run.
    samples: the teacher's completions of a prompt. 0: as many as the policy's.
    ask: "all" prompts, or those on which the policy's rollouts differ ("undecided"). The others
    have no teacher's answers. Their rewards are equal under any label, so the label changes no
    gradient.
    """

    decay: float
    final_decay: float
    samples: int
    ask: Literal["all", "undecided"] = "all"

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
    GoldAnswers
    | StartLabels
    | PeerVotes
    | EMATeacher
    | TokenEntropies
    | TokenCertainty
    | SelfJudgement
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

    It has no state. The trainer remembers labels and teacher weights, and saves them in
    checkpoints. It may draw from torch's generator on the CPU, which checkpoints hold too. A call
    must not synchronise with the device.
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


def voted_groups(rollouts: Rollouts, keys: Tensor, vote: Vote, **inputs: Tensor) -> Groups:
    """The groups of a task's prompts. keys [R] int64. inputs: optional fields of Groups."""
    return Groups(
        keys=keys,
        cu_groups=rollouts.cu_groups,
        cu_seqlens=rollouts.cu_seqlens,
        logprobs=rollouts.logprobs,
        vote=vote,
        **inputs,
    )


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


def is_undecided(keys: Tensor, cu_groups: Tensor) -> Tensor:
    """[P] bool: whether a group's rollouts differ in their answers. No answer is one of them.

    keys [R] int64, cu_groups [P+1].
    """
    group = segment_ids(cu_groups, len(keys))
    last = len(keys) - 1
    first = keys[cu_groups[:-1].long().clamp(max=last)]  # an empty group has no rollout to differ
    differs = (keys != first[group]).double()
    return segment_reduce(differs, "max", cu_groups) > 0


def sums_by(index: Tensor, values: Tensor, count: int) -> Tensor:
    """[count]: the sum of the values [R] at each index [R] int64, in their type. 0 without any."""
    zeros = torch.zeros(count, dtype=values.dtype, device=values.device)
    return zeros.index_add(0, index, values)


def mean_over_tokens(groups: Groups, values: Tensor) -> Tensor:
    """[R] fp32: the mean of values [N] over each rollout's tokens."""
    lengths = groups.cu_seqlens.diff().clamp_min(1)
    return (segment_reduce(values, "sum", groups.cu_seqlens) / lengths).float()


def group_quantile(groups: Groups, values: Tensor, fraction: float) -> Tensor:
    """[P] fp32: this quantile of values [R] fp32 in each group, which has a rollout at least.

    Interpolates linearly between order statistics, as torch.quantile does.
    """
    order = torch.argsort(values, stable=True)
    ordered = values[order[torch.argsort(group_index(groups)[order], stable=True)]]
    last = groups.cu_groups.diff() - 1
    place = fraction * last.double()
    below = place.long()
    first = groups.cu_groups[:-1] + below
    second = groups.cu_groups[:-1] + (below + 1).minimum(last)
    return torch.lerp(ordered[first], ordered[second], (place - below).float())


def keep_all(groups: Groups) -> Tensor:
    """[R] bool, all True: the mask of a reward function that leaves no rollout out."""
    return torch.ones_like(groups.keys, dtype=torch.bool)
