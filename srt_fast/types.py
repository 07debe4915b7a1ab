"""The data of a step.

Worked example, used below: two prompts with three and two rollouts. Completions have 2, 1, 3, 2 and
2 tokens. Answers are A A B | C C. Then N = 10, cu_seqlens = [0, 2, 3, 6, 8, 10], cu_groups = [0, 3,
5] and rewards = [1, 1, 0, 1, 1]. The mean-centred advantages are [1/3, 1/3, -2/3, 0, 0]. The second
group is unanimous: the training pass drops it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the plain-Python parts of the trainer need no torch
    from torch import Tensor

    from srt_kernels import Vote


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One prompt of a task."""

    id: str  # "arithmetic/17": stable across runs
    prompt: str  # "740+580=": the task's own text, before template and chat template
    messages: tuple[dict[str, Any], ...] | None = None  # of a prompt that is a chat
    gold: str | None = (
        None  # "132": for metrics only, never for training (except reward.kind "oracle")
    )
    row: object = None  # the task's own row, which its verifier may need


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A step's P problems with their token ids."""

    problems: list[Problem]
    token_ids: list[list[int]]
    dropped: int  # prompts that were too long and were replaced
    position: dict  # state of the prompt stream before these prompts


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where rollouts lie, on the host. So packing and reading need not ask the device."""

    lengths: list[int]  # R, tokens of each completion: [2, 1, 3, 2, 2]
    group_sizes: list[int]  # P, rollouts of each prompt: [3, 2]

    @classmethod
    def read(cls, cu_seqlens: Tensor, cu_groups: Tensor) -> Layout:
        """From the offsets of Rollouts. Two host syncs if they are on a GPU."""
        return cls(lengths=cu_seqlens.diff().tolist(), group_sizes=cu_groups.diff().tolist())

    @property
    def offsets(self) -> list[int]:
        """R+1, where each completion begins: [0, 2, 3, 6, 8, 10]."""
        return [0, *accumulate(self.lengths)]

    @property
    def group_bounds(self) -> list[int]:
        """P+1, where each prompt's rollouts begin: [0, 3, 5]."""
        return [0, *accumulate(self.group_sizes)]

    @property
    def groups(self) -> list[int]:
        """R, the prompt of each rollout: [0, 0, 0, 1, 1]."""
        return [group for group, size in enumerate(self.group_sizes) for _ in range(size)]


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Completions of P prompts, packed: R rollouts, N tokens, no padding. Rollouts of one prompt
    are neighbours.
    """

    tokens: Tensor  # [N] int64, completion tokens back to back, end-of-sequence token included
    cu_seqlens: Tensor  # [R+1] int32: [0, 2, 3, 6, 8, 10]
    cu_groups: Tensor  # [P+1] int32, in rollouts: [0, 3, 5]
    logprobs: Tensor  # [N] fp32, the sampler's log-prob of each token at its temperature
    truncated: Tensor  # [R] bool, True where max_tokens ended the completion
    prompts: list[list[int]]  # token ids of the P prompts
    layout: Layout  # what cu_seqlens and cu_groups say, on the host


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A step's rollouts as a reward function sees them: R rollouts in P groups, N tokens, on one
    device.

    The optional fields hold what the reward function requires (srt_fast/rewards/base.py). They are
    None otherwise.
    """

    keys: Tensor  # [R] int64, keys of the canonical answers, 0 for no answer: [A, A, B, C, C]
    cu_groups: Tensor  # [P+1] int32
    cu_seqlens: Tensor  # [R+1] int32
    logprobs: Tensor  # [N] fp32, the sampler's
    vote: Vote  # the majority vote of each group over keys
    correct: Tensor | None = None  # GoldAnswers: [R] bool, True where the answer agrees with gold
    start_labels: Tensor | None = None  # StartLabels: [P] int64, answer keys, 0 for no label
    start_shares: Tensor | None = (
        None  # StartLabels: [P] fp32, the labels' shares of the starting model's vote
    )
    teacher_keys: Tensor | None = (
        None  # EMATeacher: [R'] int64, answer keys of the teacher's rollouts
    )
    cu_teacher: Tensor | None = (
        None  # EMATeacher: [P+1] int32, where each prompt's teacher rollouts begin
    )
    entropies: Tensor | None = (
        None  # TokenEntropies: [N] fp32 nats, entropy of the policy at each token
    )
    certainty: Tensor | None = (
        None  # TokenCertainty: [N] fp32 nats, KL(uniform || policy) at each token
    )
    judge_scores: Tensor | None = (
        None  # SelfJudgement: [R] fp32, P(correct) according to the policy, NaN if unknown
    )


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What a reward function returns."""

    rewards: Tensor  # [R] fp32
    keep: Tensor  # [R] bool, False: the loss leaves the rollout out
    weights: Tensor | None = (
        None  # [R] fp32, factors of the advantages, after normalisation. None: 1
    )
    advantages: Tensor | None = None  # [R] fp32, used in place of train.advantage's


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A step's rollouts with their rewards."""

    prompts: Prompts
    rollouts: Rollouts
    groups: Groups
    reward: Reward
    rounds: int  # how many times prompts were sampled: more than 1 only with reward.resample


@dataclass(frozen=True, kw_only=True)
class PackedSequences:
    """r sequences, each a prompt and its completion, packed into T tokens. n tokens are targets.

    With prompts of 3 tokens and the first group above, packed in that order: T = 5 + 4 + 6 = 15,
    n = 6. (`pack` of srt_fast/model/packing.py puts the longest first.)
    """

    input_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64: [0 1 2 3 4 | 0 1 2 3 | 0 1 2 3 4 5]
    cu_input: Tensor  # [r+1] int32, where each sequence begins: [0, 5, 9, 15]
    max_length: int  # tokens of the longest sequence: 6
    row_index: Tensor  # [n] int64, the hidden row that predicts each target: [2 3 | 7 | 11 12 13].
    # It has no value twice.
    targets: Tensor  # [n] int64, completion tokens
    cu_seqlens: Tensor  # [r+1] int32, where each completion begins among the targets: [0, 2, 3, 6]


@dataclass(frozen=True, kw_only=True)
class MicroBatch(PackedSequences):
    """Sequences of one training pass, with what their loss needs."""

    advantages: Tensor  # [r] fp32: [1/3, 1/3, -2/3]
    sampler_logprobs: Tensor  # [n] fp32
    rollout_index: Tensor  # [r] int64, places among the step's R rollouts: [0, 1, 2]
    token_index: Tensor  # [n] int64, places among the step's N tokens
    old_logprobs: Tensor | None = None  # [n] fp32, before the step's first update. None: current
    ref_logprobs: Tensor | None = None  # [n] fp32, the reference model's. None: no KL term
    normalizer: int | None = None  # tokens or rollouts that the mini-batch's loss is divided by
