"""The data of a step.

Worked example, used below: two prompts with three and two rollouts. Completions have 2, 1, 3, 2 and
2 tokens. Answers are A A B | C C. Then N = 10, cu_seqlens = [0, 2, 3, 6, 8, 10], cu_groups = [0, 3,
5] and rewards = [1, 1, 0, 1, 1]. The mean-centred advantages are [1/3, 1/3, -2/3, 0, 0]. The second
group is unanimous: the training pass drops it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    are_repeated: bool = False  # the step has them already (curriculum.repeat_hard)


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

    An episode has one object for each turn. In a later turn a group is what shares a baseline
    (srt_fast/rewards/turns.py). The optional fields hold what the reward function requires
    (srt_fast/rewards/base.py). They are None otherwise.
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
    peer_labels: Tensor | None = None  # PeerVotes: [P, K] int64, answer keys, 0 for no label
    peer_shares: Tensor | None = None  # PeerVotes: [P, K] fp32, the labels' shares of their votes
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
    parent: Tensor | None = (
        None  # [R] int64, the rollout of the turn before that each one answers. None: first turn
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
    cu_groups: Tensor | None = (
        None  # [G+1] int32, where the rollouts of each baseline begin. None: those of a prompt
    )
    supervised: Tensor | None = (
        None  # [R] bool, completions that a supervised step may learn. None: the vote picks them
    )


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What a rollout of a turn answers."""

    problem: Problem  # the task's
    question: str  # what the turn asks, as it is worded; the task's prompt in the first turn
    token_ids: list[int]
    messages: tuple[dict[str, Any], ...]  # of a chat, the question is the last. Empty without


@dataclass(frozen=True, kw_only=True)
class PlayedTurn:
    """A turn of a step's episodes: R rollouts of C conversations."""

    conversations: list[Conversation]  # C: the prompts of the rollouts
    prompts: list[int]  # R, the task's prompt of each rollout, as a place in the step
    parents: list[int]  # R, Groups.parent on the host. Empty in the first turn
    rollouts: Rollouts
    groups: Groups
    too_long: int = 0  # conversations that did not fit into a prompt and were left out


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A step's rollouts with their rewards."""

    prompts: Prompts
    rollouts: Rollouts
    groups: Groups
    reward: Reward
    rounds: int  # batches of new prompts: more than 1 only with reward.resample
    later: list[PlayedTurn] = field(default_factory=list)  # the turns after the first
    later_rewards: list[Reward] = field(default_factory=list)  # one for each of `later`


@dataclass(frozen=True, kw_only=True)
class Segments:
    """s segments of a packed row of T tokens, and the keys that each one attends to: K in all.

    A segment's tokens are queries. They are the last of its own keys: query i of q attends to the
    first k - q + i + 1 of k keys. A sequence that stands alone is one segment with q = k. A shared
    prompt of p tokens is a segment with q = k = p. A completion of it has the keys [prompt | own].
    """

    query_lengths: list[int]  # s: [3, 2, 1]
    key_lengths: list[int]  # s: [3, 5, 4]
    cu_queries: Tensor  # [s+1] int32, where each segment's tokens begin: [0, 3, 5, 6]
    cu_keys: Tensor  # [s+1] int32, where each segment's keys begin: [0, 3, 8, 12]
    key_index: Tensor | None  # [K] int64, the token of each key: [0 1 2 | 0 1 2 3 4 | 0 1 2 5].
    # None: each segment's keys are its own tokens
    max_queries: int = field(init=False)  # tokens of the longest segment: 3
    max_keys: int = field(init=False)  # keys of the segment that has most: 5
    # Numbers, because torch.compile would compile again for other lengths of the lists.
    plans: dict[int | None, Any] = field(default_factory=dict, compare=False, repr=False)
    """What the attention has worked out, by sliding window: each layer needs the same."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_queries", max(self.query_lengths, default=0))
        object.__setattr__(self, "max_keys", max(self.key_lengths, default=0))

    @classmethod
    def of_sequences(cls, lengths: list[int], cu_seqlens: Tensor) -> Segments:
        """Sequences that stand alone: lengths [s]; cu_seqlens [s+1] int32, where each begins."""
        return cls(
            query_lengths=lengths,
            key_lengths=lengths,
            cu_queries=cu_seqlens,
            cu_keys=cu_seqlens,
            key_index=None,
        )


@dataclass(frozen=True, kw_only=True)
class PackedSequences:
    """r rollouts packed into T tokens. n completion tokens are targets.

    The first group above, with a prompt of 3 tokens. The longest completion comes first. The last
    token of a completion predicts nothing, so it is no input:

        prompt | the 3rd's first 2 | the 1st's first | of the 2nd: nothing      T = 6, n = 6

    Without sharing, each completion has the prompt before it: T = 5 + 4 + 3 = 12.
    """

    input_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64: [0 1 2 | 3 4 | 3]
    segments: Segments
    row_index: Tensor  # [n] int64, the hidden row that predicts each target: [2 3 4 | 2 5 | 2].
    # A prompt's last row predicts the first token of all its completions.
    unique_rows: bool  # no row repeats in row_index
    targets: Tensor  # [n] int64, completion tokens
    cu_seqlens: Tensor  # [r+1] int32, where each completion begins among the targets: [0, 3, 5, 6]


@dataclass(frozen=True, kw_only=True)
class MicroBatch(PackedSequences):
    """Rollouts of one training pass, with what their loss needs."""

    advantages: Tensor  # [r] fp32: [-2/3, 1/3, 1/3]
    sampler_logprobs: Tensor  # [n] fp32
    rollout_index: Tensor  # [r] int64, places among the step's R rollouts: [2, 0, 1]
    token_index: Tensor  # [n] int64, places among the step's N tokens
    old_logprobs: Tensor | None = None  # [n] fp32, before the step's first update. None: current
    ref_logprobs: Tensor | None = None  # [n] fp32, the reference model's. None: no KL term
    normalizer: int | None = None  # tokens or rollouts that the mini-batch's loss is divided by
    minibatch_tokens: int | None = None  # that the mini-batch's rollouts compute without sharing
