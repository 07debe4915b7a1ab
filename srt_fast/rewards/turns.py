"""Episodes: the model answers, and is asked again about what it wrote.

A reward function that declares `turns` takes an episode: one Groups for each turn. It returns one
Reward for each turn. Every turn is sampled as ordinary rollouts, whose prompt is the conversation
so far. Each turn's tokens train with their own advantages.

Worked example: self-correction. One prompt has the label 132 of a teacher. The first turn answers
132 132 131 132. Each answer is revised once, to 132 131 132 132.

    first turn   rewards r1 = 1 1 0 1, mean-centred advantages 1/4 1/4 -3/4 1/4
    second turn  parent = 0 1 2 3, r2 = 1 0 1 1, shaped r2 + alpha (r2 - r1) with alpha 1:
                 1 -1 2 1, mean 3/4, advantages 1/4 -7/4 5/4 1/4

With completions of 10 tokens the training pass has N = 80 tokens, and baselines cu_groups =
[0, 4, 8]. The second turn has one baseline for the prompt (`group` "prompt"), and four
conversations.

Worked example: verdicts. Three solutions agree and one dissents. The three are asked once each, and
the dissenter three times (`ask` "balanced", `group` "answer"). The verdicts are 1 1 0 on the first
answer and 0 1 0 on the second. A verdict that says what the vote says has reward 1: 1 1 0 | 1 0 1,
cu_groups = [0, 3, 6]. On the majority's solutions "correct" outweighs "wrong", 2 to 1: the prompt
is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from srt_fast.rewards.base import (
    EMATeacher,
    GoldAnswers,
    Requirement,
    StartLabels,
    group_index,
)
from srt_fast.types import Groups, Reward
from srt_kernels import majority_vote
from srt_kernels.answers.canonical import answer_key

Ask = Literal["all", "balanced", "rejected", "one_per_answer", "one_per_prompt", "new"]
Baseline = Literal["prompt", "parent", "answer"]
Reply = Literal["answer", "verdict", "text", "problem"]
LabelSource = Literal["majority", "ema", "frozen", "oracle"]
"""Whose label the answers of an episode are compared with. The names are those of reward.kind."""

CORRECT = answer_key("1")
WRONG = answer_key("0")
"""The keys of the verdicts."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """How one turn of an episode is asked. The first turn is Turn(): the task's own prompt, with
    sampling.group_size completions.

    Raises ValueError for a value that does not exist or does not fit.
    """

    question: str = ""
    """What is asked. {prompt}, {completion} and {answer} stand for the task's prompt, for the
    completion that is asked about and for its answer. With {prompt} or {completion} the question is
    a prompt of its own. Without, it goes on with the conversation: as the next message of a chat,
    or as text behind the completion."""
    ask: Ask = "all"
    """Which completions of the turn before are asked about.

    all: each of them.
    balanced: as many that agree with the label as others. With group "answer", in each prompt: all
    that agree once (a single one twice), and one with the rarest other answer as often. With other
    groups, at random over the step; where one kind is rare, the other fills up to `limit`.
    rejected: those that are the verdict 0.
    one_per_answer: the first completion of each answer, all in one question. Only prompts with
    several answers are asked.
    one_per_prompt: the first completion of each prompt.
    new: each problem that the model wrote, if it is not empty or truncated; of equal texts the
    first. A step that samples several times (reward.resample, curriculum.repeat_hard) asks each
    time anew."""
    samples: int = 1
    """Completions of each question."""
    limit: int = 0
    """The most questions of a sampling, chosen at random. 0: no limit. With group "prompt" and
    "answer" few prompts whole, so that baselines are not of one completion."""
    group: Baseline = "prompt"
    """Which completions share a baseline: those of a task's prompt, of a question, or those about
    one answer to a prompt."""
    reply: Reply = "answer"
    """What a completion is: an answer to the task's prompt, a verdict (1 or 0), a text that only
    the next turn reads, or a problem. The turns behind a problem are about it, and no longer about
    the task's prompt: no label and no gold answer fits them."""

    def __post_init__(self) -> None:
        for name, kinds in (("ask", Ask), ("group", Baseline), ("reply", Reply)):
            value = getattr(self, name)
            if value not in get_args(kinds):
                expected = ", ".join(get_args(kinds))
                raise ValueError(f"turn: {name}: expected one of {expected}, got {value!r}")
        asks_pairs = self.ask == "balanced" and self.group == "answer"
        if self.samples < 1 or self.limit < 0 or (asks_pairs and 0 < self.limit < 4):
            raise ValueError(
                "turn: expected samples of at least 1 and a limit of at least 0 (balanced with "
                'group "answer": 0, or two verdicts on each of two answers, 4), '
                f"got samples={self.samples}, limit={self.limit}"
            )
        if self.ask == "one_per_answer" and "{completion}" not in self.question:
            raise ValueError(
                "turn: question: expected {completion} with ask 'one_per_answer', "
                f"got {self.question!r}"
            )

    @property
    def stands_alone(self) -> bool:
        """Whether the question is a prompt of its own."""
        return "{completion}" in self.question or "{prompt}" in self.question


class EpisodeFunction(Protocol):
    """A reward function of episodes: see RewardFunction for all but the turns."""

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """What the function reads beside the vote."""
        ...

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of an episode, Turn() first."""
        ...

    def __call__(self, episode: Sequence[Groups], /) -> Sequence[Reward]:
        """The rewards of each turn. A later turn may have no rollouts."""
        ...


def turns_of(function: Any) -> tuple[Turn, ...]:
    """The turns that a reward function declares. Empty: it takes single completions.

    Raises ValueError unless the first turn has no question and all others have one, and for a turn
    that asks about what the turns before do not give.
    """
    turns = tuple(getattr(function, "turns", ()))
    name = f"{type(function).__name__}.turns"
    questions = [turn.question for turn in turns]
    if turns and (questions[0] or len(turns) == 1 or not all(questions[1:])):
        raise ValueError(
            f"{name}: expected Turn() and at least one turn with a question, "
            f"got questions {questions}"
        )
    needs = {
        "balanced": "answer",
        "one_per_answer": "answer",
        "rejected": "verdict",
        "new": "problem",
    }
    for number, (before, turn) in enumerate(pairwise(turns)):
        reply = needs.get(turn.ask, before.reply)
        if before.reply != reply:
            raise ValueError(
                f"{name}: expected ask {turn.ask!r} behind a turn of reply {reply!r}, "
                f"got it behind {before.reply!r}"
            )
        if is_about_task(turns, number):
            continue
        if reply == "answer" and turn.ask in needs:
            raise ValueError(
                f"{name}: expected ask {turn.ask!r} about answers to the task's prompt, "
                "got it about answers to a problem that the model wrote"
            )
        if "{prompt}" in turn.question:
            raise ValueError(
                f"{name}: expected no {{prompt}}, which is the task's, in a question about a "
                f"problem that the model wrote, got {turn.question!r}"
            )
    return turns


def is_about_task(turns: Sequence[Turn], number: int) -> bool:
    """Whether this turn is about the task's prompt, not about a problem that the model wrote."""
    return all(turn.reply != "problem" for turn in turns[: number + 1])


# ---- what reward functions of episodes compute with ----


def label_requirements(source: LabelSource) -> tuple[Requirement, ...]:
    """What a reward function requires for labels of this source."""
    requirements: dict[LabelSource, tuple[Requirement, ...]] = {
        "majority": (),
        "ema": (EMATeacher(decay=0.99, final_decay=0.9999, samples=0),),
        "frozen": (StartLabels(),),
        "oracle": (GoldAnswers(),),
    }
    return requirements[source]


def ancestors(episode: Sequence[Groups], turn: int) -> Tensor:
    """[R] int64: the rollout of the first turn that each rollout of a turn goes back to."""
    index = torch.arange(len(episode[turn].keys), device=episode[turn].keys.device)
    for groups in reversed(episode[1 : turn + 1]):
        assert groups.parent is not None
        index = groups.parent[index]
    return index


def prompt_index(episode: Sequence[Groups], turn: int) -> Tensor:
    """[R] int64: the task's prompt of each rollout of a turn."""
    return group_index(episode[0])[ancestors(episode, turn)]


def agreement(episode: Sequence[Groups], turn: int) -> Tensor:
    """[R] bool: which answers of a turn agree with their prompt's label.

    The label is gold, the vote of a teacher or of the starting model, if the reward function
    requires one of them. Otherwise it is the vote of the first turn.
    """
    first = episode[0]
    groups = episode[turn]
    if first.correct is not None:
        assert groups.correct is not None
        return groups.correct
    labels = first.vote.majority
    if first.teacher_keys is not None and first.cu_teacher is not None:
        labels = majority_vote(first.teacher_keys, first.cu_teacher).majority
    elif first.start_labels is not None:
        labels = first.start_labels
    return (groups.keys == labels[prompt_index(episode, turn)]) & (groups.keys != 0)


def verdict_agreement(episode: Sequence[Groups], turn: int) -> Tensor:
    """[R] bool: which verdicts of a turn say what the label says of the answer before."""
    parent = episode[turn].parent
    assert parent is not None
    expected = torch.where(agreement(episode, turn - 1)[parent], CORRECT, WRONG)
    return episode[turn].keys == expected
