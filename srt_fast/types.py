"""The data that flows through a step: types, and how batches of them are joined.

Worked example (used below): two prompts, three and two rollouts, completions of 2, 1, 3, 2 and 2 tokens, answers
A A B | C C. Then N = 10, cu_seqlens = [0, 2, 3, 6, 8, 10], cu_groups = [0, 3, 5], rewards = [1, 1, 0, 1, 1] and the
mean-centred advantages [1/3, 1/3, -2/3, 0, 0]: the second group is unanimous and never reaches the training pass.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace

import torch
from torch import Tensor

from srt_kernels.core.segments import segment_ids, segment_reduce
from srt_kernels.groups.majority_vote import Vote, votes_per_key


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One prompt of a task."""

    id: str  # "arithmetic/17": stable across runs
    prompt: str  # "740+580=" : the task's own text, before template and chat template
    gold: str | None = (
        None  # "132": for metrics only, never for training (except feedback "oracle")
    )
    row: object = None  # the task's own row, which its verifier may need


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Completions of P prompts, packed: R rollouts, N tokens, no padding. Rollouts of one prompt are neighbours."""

    tokens: Tensor  # [N] int64, completion tokens back to back, end-of-sequence token included
    cu_seqlens: Tensor  # [R+1] int32: [0, 2, 3, 6, 8, 10]
    cu_groups: Tensor  # [P+1] int32, in rollouts: [0, 3, 5]
    logprobs: Tensor  # [N] fp32, the sampler's log-prob of each token at its temperature
    truncated: Tensor  # [R] bool, True where the completion hit max_new_tokens without an end-of-sequence token
    prompts: list[list[int]]  # P prompts' token ids


@dataclass(frozen=True, kw_only=True)
class PackedSequences:
    """r sequences, each a prompt and its completion, packed into T tokens. n tokens are targets.

    With prompts of 3 tokens and the first group above: T = 5 + 4 + 6 = 15, n = 6.
    """

    input_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64: [0 1 2 3 4 | 0 1 2 3 | 0 1 2 3 4 5]
    cu_input: Tensor  # [r+1] int32, where each sequence begins: [0, 5, 9, 15]
    row_index: Tensor  # [n] int64, the hidden row that predicts each target: [2 3 | 7 | 11 12 13]
    targets: Tensor  # [n] int64, completion tokens
    cu_seqlens: Tensor  # [r+1] int32, where each completion begins among the targets: [0, 2, 3, 6]


@dataclass(frozen=True, kw_only=True)
class MicroBatch(PackedSequences):
    """Sequences of one training pass, with what their loss needs."""

    advantages: Tensor  # [r] fp32: [1/3, 1/3, -2/3]
    sampler_logprobs: Tensor  # [n] fp32
    rollout_index: Tensor  # [r] int64, places among the step's R rollouts: [0, 1, 2]
    token_index: Tensor  # [n] int64, places among the step's N tokens


def join(parts: list):
    """Dataclasses of one type, or tensors or lists, one behind the other. Offsets (fields named cu_...) go on where the part
    before ends. None where every part is None."""
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if not is_dataclass(first):
        return sum(parts, [])
    values = {field.name: [getattr(part, field.name) for part in parts] for field in fields(first)}
    return type(first)(
        **{
            name: _join_offsets(some)
            if name.startswith("cu_") and some[0] is not None
            else join(some)
            for name, some in values.items()
        }
    )


def _join_offsets(parts: list[Tensor]) -> Tensor:
    joined = parts[0]
    for offsets in parts[1:]:
        joined = torch.cat([joined, joined[-1] + offsets[1:]])
    return joined


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A step's P problems with their token ids."""

    problems: list[Problem]
    token_ids: list[list[int]]
    dropped: int  # prompts that were too long and have been replaced
    position: dict  # the stream's state before these prompts


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A step's rollouts as a reward design sees them. R rollouts in P groups, N tokens, on one device."""

    keys: Tensor  # [R] int64, canonical answers' keys, 0: no answer
    cu_groups: Tensor  # [P+1] int32
    cu_seqlens: Tensor  # [R+1] int32
    logprobs: Tensor  # [N] fp32, the sampler's
    vote: Vote  # the groups' majority vote over keys
    correct: Tensor | None = None  # [R] bool, agreement with gold: "gold"
    start_labels: Tensor | None = (
        None  # [P] int64, keys voted by the starting model or read from a file, 0: none: "start"
    )
    start_shares: Tensor | None = None  # [P] fp32, their shares of that vote
    teacher_keys: Tensor | None = (
        None  # [R'] int64, answers of the moving-average teacher to the same prompts: "teacher"
    )
    cu_teacher: Tensor | None = None  # [P+1] int32, which of them are whose
    entropies: Tensor | None = (
        None  # [N] fp32 nats, of the policy's distribution at each token: "entropies"
    )
    certainty: Tensor | None = (
        None  # [N] fp32 nats, KL of the uniform distribution to that one: "certainty"
    )
    judged: Tensor | None = (
        None  # [R] fp32, the policy's own probability that the rollout is correct: "judgement"
    )

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
        return (
            segment_reduce(values, "sum", self.cu_seqlens) / self.cu_seqlens.diff().clamp_min(1)
        ).float()

    def everyone(self) -> Tensor:
        """[R] bool, all true: the mask of a design that leaves nothing out."""
        return torch.ones_like(self.keys, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What a design gives back."""

    rewards: Tensor  # [R] fp32
    keep: Tensor  # [R] bool, False: the rollout is left out of the loss
    weights: Tensor | None = (
        None  # [R] fp32, multiplies the rollout's advantage, after any normalisation; None: 1
    )
    advantages: Tensor | None = (
        None  # [R] fp32, in place of those that train.advantage makes of the rewards
    )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A step's rollouts with their rewards."""

    prompts: Prompts
    rollouts: Rollouts
    reward: Reward
    groups: Groups
    rounds: int  # how often prompts were sampled
    seconds_reward: float  # of the making, sampling by teachers included

    def joined(self, other: Batch) -> Batch:
        """Both, this one first."""
        prompts = replace(
            self.prompts,
            problems=self.prompts.problems + other.prompts.problems,
            token_ids=self.prompts.token_ids + other.prompts.token_ids,
            dropped=self.prompts.dropped + other.prompts.dropped,
        )
        return Batch(
            prompts=prompts,
            rollouts=join([self.rollouts, other.rollouts]),
            reward=join([self.reward, other.reward]),
            groups=join([self.groups, other.groups]),
            rounds=self.rounds + other.rounds,
            seconds_reward=self.seconds_reward + other.seconds_reward,
        )
