r"""The majority vote over saved completions: what `srt-fast vote` prints and writes.

The same chain as the trainer's reward (read_answer, answer_key, majority_vote), without a tokenizer and without a
model. Worked example: five completions whose boxes say 1/2, 0.5, \frac12, 3 and nothing. The canonical form joins the
first three: majority "1/2", share 3/5, runner-up 1/5. Raw strings would have split those three, so two votes are
joined.
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
from srt_kernels.answers.extract import answer_key, canonical_answer, read_answer
from srt_kernels.groups.majority_vote import majority_vote


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of a group, in all its spellings."""

    form: str | None  # "1/2": canonical; None: no answer
    count: int  # 3
    spellings: tuple[
        tuple[str, int], ...
    ]  # (("1/2", 1), ("0.5", 1), ("\\frac12", 1)), most common first


@dataclass(frozen=True, kw_only=True)
class GroupVote:
    """What one group of completions says."""

    name: Any  # of the group, as the file has it
    n: int  # completions
    majority: str | None  # canonical; None where no completion has an answer
    share: float
    runner_up: float  # share of the next answer
    split: tuple[Answer, ...]  # most common first, no answer last
    changed: bool  # a vote over raw strings would elect another answer
    gold: str | None  # canonical
    correct: bool | None  # the majority is gold; None: no gold
    accuracy: float | None  # part of the completions that agree with gold

    @property
    def valid(self) -> int:
        """Completions that have an answer."""
        return sum(answer.count for answer in self.split if answer.form is not None)

    @property
    def joined(self) -> int:
        """Votes that agree with their answer's most common spelling in the canonical form only."""
        return sum(
            answer.count - answer.spellings[0][1]
            for answer in self.split
            if answer.form is not None
        )


def vote(groups: list[SavedGroup], rule: str, share_over: str) -> list[GroupVote]:
    """The vote of each group."""
    answers = [[read_answer(text, rule) for text in group.texts] for group in groups]
    key_of = {text: answer_key(text) for text in {text for group in answers for text in group}}
    form_of = {key: canonical_answer(text) for text, key in key_of.items() if key}
    keys = torch.tensor([key_of[text] for group in answers for text in group], dtype=torch.int64)
    cu_groups = torch.tensor([0, *(len(group) for group in answers)]).cumsum(0).int()
    votes = majority_vote(keys, cu_groups, share_over=share_over)
    figures = zip(
        votes.majority.tolist(), votes.share.tolist(), votes.runner_up.tolist(), strict=True
    )
    return [
        _group_vote(group, texts, key_of, form_of, *each)
        for group, texts, each in zip(groups, answers, figures, strict=True)
    ]


def _group_vote(
    group: SavedGroup,
    texts: list[str | None],
    key_of: dict,
    form_of: dict,
    majority: int,
    share: float,
    runner_up: float,
) -> GroupVote:
    spellings: dict[int, Counter] = {}
    for text in texts:
        spellings.setdefault(key_of[text], Counter())[text] += 1
    ordered = sorted(
        spellings.items(), key=lambda item: (item[0] == 0, -item[1].total())
    )  # stable: ties to the earliest
    raw = Counter(text for text in texts if key_of[text]).most_common(1)
    gold = None if group.gold is None else final_answer(group.gold)
    gold_key = answer_key(gold)
    return GroupVote(
        name=group.name,
        n=len(texts),
        majority=form_of.get(majority),
        share=share,
        runner_up=runner_up,
        split=tuple(
            Answer(
                form=form_of.get(key),
                count=count.total(),
                spellings=tuple(count.most_common()) if key else (),
            )
            for key, count in ordered
        ),
        changed=bool(raw) and key_of[raw[0][0]] != majority,
        gold=canonical_answer(gold) if gold_key else None,
        correct=majority == gold_key if gold_key else None,
        accuracy=sum(key_of[text] == gold_key for text in texts) / max(len(texts), 1)
        if gold_key
        else None,
    )


def summary(votes: list[GroupVote], gold_field: str | None) -> str:
    """The figures of all groups as one line."""
    joined, changed = sum(vote.joined for vote in votes), sum(vote.changed for vote in votes)
    silent = sum(vote.majority is None for vote in votes)
    line = (
        f"{_many(len(votes), 'group')}, {_many(sum(vote.n for vote in votes), 'completion')}: "
        f"mean share {statistics.fmean(vote.share for vote in votes):.3f}, "
        f"{sum(vote.share == 1 for vote in votes):,} unanimous, {silent:,} without any answer; canonical forms joined "
        f"{_many(joined, 'vote')} that raw strings split and changed {_many(changed, 'majority', 'majorities')}"
    )
    known = [vote for vote in votes if vote.correct is not None]
    if known:
        of = "" if len(known) == len(votes) else f" in {_many(len(known), 'group')}"
        line += (
            f"; agreement with {gold_field!r}{of}: majority {statistics.fmean(vote.correct for vote in known):.3f}, "
            f"mean completion {statistics.fmean(vote.accuracy for vote in known):.3f}"
        )
    return line


def _many(count: int, one: str, more: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def write_rows(path: Path, votes: Iterable[GroupVote]) -> None:
    """One JSON object per group; the file is whole or as it was before."""
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
    return (
        row
        if vote.gold is None
        else row | {"gold": vote.gold, "correct": vote.correct, "accuracy": round(vote.accuracy, 6)}
    )
