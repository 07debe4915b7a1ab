r"""The majority vote over saved completions: what `srt-fast vote` prints and writes.

It is the chain of the trainer's reward (read_answer, answer_key, majority_vote), without a
tokenizer and without a model. Worked example: five completions whose boxes say 1/2, 0.5, \frac12, 3
and nothing. The canonical form joins the first three: majority "1/2", share 3/5, runner-up 1/5. Raw
strings would have split them, so two votes are joined.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srt_fast.files import write_atomically
from srt_fast.tasks.dataset import final_answer
from srt_fast.vote.completions import SavedGroup
from srt_kernels.answers.canonical import answer_key, canonical_answer
from srt_kernels.answers.extract import read_answer
from srt_kernels.groups.majority_vote import ShareOver, majority_vote


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of a group, with all its spellings."""

    form: str | None  # "1/2": canonical; None: no answer
    count: int  # 3
    spellings: tuple[tuple[str, int], ...]  # (("1/2", 1), ("0.5", 1), ...), most common first


@dataclass(frozen=True, kw_only=True)
class GroupVote:
    """The vote of one group of completions."""

    name: Any  # of the group, as in the file
    n: int  # completions
    majority: str | None  # canonical; None if no completion has an answer
    share: float
    runner_up: float  # share of the next answer
    split: tuple[Answer, ...]  # most common first; no answer last
    changed: bool  # whether a vote over raw strings would elect another answer
    gold: str | None  # canonical
    correct: bool | None  # whether the majority is the gold answer; None: no gold
    accuracy: (
        float | None
    )  # share of the completions that agree with the gold answer; None: no gold

    @property
    def answers(self) -> list[Answer]:
        """The split without "no answer"."""
        return [answer for answer in self.split if answer.form is not None]

    @property
    def valid(self) -> int:
        """Completions that have an answer."""
        return sum(answer.count for answer in self.answers)

    @property
    def joined(self) -> int:
        """Votes that agree with the most common spelling only in the canonical form."""
        return sum(answer.count - answer.spellings[0][1] for answer in self.answers)


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """Keys and canonical forms of the texts of answers."""

    key_of: dict[str | None, int]  # 0 for None
    form_of: dict[int, str | None]  # of the keys that are not 0


def vote(groups: list[SavedGroup], rule: str, share_over: ShareOver) -> list[GroupVote]:
    """The vote of each group.

    rule: where the answer of a completion is (read_answer). share_over: see majority_vote.
    """
    answers = [[read_answer(text, rule) for text in group.texts] for group in groups]
    texts = {text for group in answers for text in group}
    key_of = {text: answer_key(text) for text in texts}
    form_of = {key_of[text]: canonical_answer(text) for text in texts if text and key_of[text]}
    keys = torch.tensor([key_of[text] for group in answers for text in group], dtype=torch.int64)
    cu_groups = torch.tensor([0, *map(len, answers)]).cumsum(0).int()
    votes = majority_vote(keys, cu_groups, share_over=share_over)
    columns = zip(
        groups,
        answers,
        votes.majority.tolist(),
        votes.share.tolist(),
        votes.runner_up.tolist(),
        strict=True,
    )
    keyed = _Keys(key_of=key_of, form_of=form_of)
    return [
        _group_vote(group, texts, keyed, majority, share, runner_up)
        for group, texts, majority, share, runner_up in columns
    ]


def _group_vote(
    group: SavedGroup,
    texts: list[str | None],
    keyed: _Keys,
    majority: int,
    share: float,
    runner_up: float,
) -> GroupVote:
    """texts: the answers of the completions. majority: a key."""
    keys = [keyed.key_of[text] for text in texts]
    raw_majority = Counter(text for text in texts if keyed.key_of[text]).most_common(1)
    gold = None if group.gold is None else final_answer(group.gold)
    gold_key = answer_key(gold)
    if gold_key == 0:
        gold = None
    return GroupVote(
        name=group.name,
        n=len(texts),
        majority=keyed.form_of.get(majority),
        share=share,
        runner_up=runner_up,
        split=_split(texts, keyed),
        changed=bool(raw_majority) and keyed.key_of[raw_majority[0][0]] != majority,
        gold=None if gold is None else canonical_answer(gold),
        correct=None if gold is None else majority == gold_key,
        accuracy=None if gold is None else keys.count(gold_key) / max(len(keys), 1),
    )


def _split(texts: list[str | None], keyed: _Keys) -> tuple[Answer, ...]:
    """The answers, most common first. A tie goes to the earliest completion."""
    spellings: dict[int, Counter] = {}
    for text in texts:
        spellings.setdefault(keyed.key_of[text], Counter())[text] += 1
    counts = sorted(spellings.items(), key=lambda item: (item[0] == 0, -item[1].total()))
    return tuple(
        Answer(
            form=keyed.form_of.get(key),
            count=count.total(),
            spellings=tuple(count.most_common()) if key else (),
        )
        for key, count in counts
    )


def summary(votes: list[GroupVote], gold_field: str | None) -> str:
    """The figures of all groups as one line."""
    joined = sum(vote.joined for vote in votes)
    changed = sum(vote.changed for vote in votes)
    without_answer = sum(vote.majority is None for vote in votes)
    unanimous = sum(vote.share == 1 for vote in votes)
    completions = sum(vote.n for vote in votes)
    line = (
        f"{_count(len(votes), 'group')}, {_count(completions, 'completion')}: "
        f"mean share {statistics.fmean(vote.share for vote in votes):.3f}, "
        f"{unanimous:,} unanimous, {without_answer:,} without any answer; canonical forms joined "
        f"{_count(joined, 'vote')} that raw strings split and changed "
        f"{_count(changed, 'majority', 'majorities')}"
    )
    correct = [vote.correct for vote in votes if vote.correct is not None]
    accuracies = [vote.accuracy for vote in votes if vote.accuracy is not None]
    if correct:
        groups = "" if len(correct) == len(votes) else f" in {_count(len(correct), 'group')}"
        line += (
            f"; agreement with {gold_field!r}{groups}: majority {statistics.fmean(correct):.3f}, "
            f"mean completion {statistics.fmean(accuracies):.3f}"
        )
    return line


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def write_rows(path: Path, votes: Iterable[GroupVote]) -> None:
    """Writes one JSON object for each group. The file is whole, or as it was before.

    Raises ValueError where `path` is no file, such as a folder.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"--out: expected a file, got {str(path)!r}, which is none")
    write_atomically(path.resolve(), "".join(json.dumps(_row(vote)) + "\n" for vote in votes))


def _row(vote: GroupVote) -> dict[str, Any]:
    split = [
        {"answer": answer.form, "count": answer.count, "spellings": dict(answer.spellings)}
        for answer in vote.split
    ]
    row = {
        "group": vote.name,
        "majority": vote.majority,
        "share": round(vote.share, 6),
        "runner_up": round(vote.runner_up, 6),
        "n": vote.n,
        "valid": vote.valid,
        "split": split,
    }
    if vote.accuracy is not None:
        row["gold"] = vote.gold
        row["correct"] = vote.correct
        row["accuracy"] = round(vote.accuracy, 6)
    return row
