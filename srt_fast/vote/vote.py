r"""The majority vote over saved completions: what `srt-fast vote` prints and writes.

It is the chain of the trainer's reward (read_answer, answer_key, majority_vote), without a
tokenizer, a model and tensors. A test compares its votes with those of majority_vote.

Worked example: five completions whose boxes say 1/2, 0.5, \frac12, 3 and nothing. The canonical
form joins the first three: majority "1/2", share 3/5, runner-up 1/5. Raw strings would have split
them, so two votes are joined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from srt_fast.config.reward import ShareOver
from srt_fast.tasks.gold import final_answer
from srt_fast.vote.answers import with_form
from srt_fast.vote.saved import ReadAnswer, SavedAnswers, SavedGroup
from srt_fast.vote.skipped import count_text


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


def vote(saved: SavedAnswers, share_over: ShareOver) -> Iterator[GroupVote]:
    """The vote of each group: that of majority_vote in srt_kernels, without tensors."""
    for group in saved.groups:
        yield _group_vote(group, saved.answers, share_over)


@lru_cache(maxsize=1 << 14)
def _gold_answer(gold: str) -> ReadAnswer:
    return with_form(final_answer(gold))


def _group_vote(group: SavedGroup, answers: list[ReadAnswer], share_over: ShareOver) -> GroupVote:
    n = len(group.answers)
    counts = Counter(group.answers)
    split = _split(counts, answers)
    valid = [place for place in counts if answers[place].key]
    votes = [answer.count for answer in split if answer.form is not None] + [0, 0]
    total = max(n if share_over == "all" else sum(votes), 1)
    majority = split[0].form if split else None
    raw_majority = max(valid, key=counts.__getitem__, default=None)
    gold = None if group.gold is None else _gold_answer(group.gold)
    correct = sum(counts[place] for place in valid if gold and answers[place].key == gold.key)
    return GroupVote(
        name=group.name,
        n=n,
        majority=majority,
        share=votes[0] / total,
        runner_up=votes[1] / total,
        split=split,
        changed=raw_majority is not None and answers[raw_majority].form != majority,
        gold=gold.form if gold else None,
        correct=majority == gold.form if gold and gold.key else None,
        accuracy=correct / max(n, 1) if gold and gold.key else None,
    )


def _split(counts: Counter[int], answers: list[ReadAnswer]) -> tuple[Answer, ...]:
    """The answers, most common first. A tie goes to the earliest completion.

    counts: of places in `answers`, in the order of the completions.
    """
    by_key: dict[int, list[int]] = {}
    for place in counts:
        by_key.setdefault(answers[place].key, []).append(place)
    split = []
    for key, places in by_key.items():
        places.sort(key=counts.__getitem__, reverse=True)  # keeps the order of equal counts
        split.append(
            Answer(
                form=answers[places[0]].form,
                count=sum(counts[place] for place in places),
                spellings=tuple((str(answers[p].text), counts[p]) for p in places) if key else (),
            )
        )
    split.sort(key=lambda answer: (answer.form is None, -answer.count))
    return tuple(split)


@dataclass(kw_only=True)
class Totals:
    """The figures of all groups."""

    groups: int = 0
    completions: int = 0
    share: float = 0.0  # a sum over groups, as the others
    unanimous: int = 0
    without_answer: int = 0
    joined: int = 0
    changed: int = 0
    with_gold: int = 0
    correct: int = 0
    accuracy: float = 0.0

    def add(self, vote: GroupVote) -> None:
        self.groups += 1
        self.completions += vote.n
        self.share += vote.share
        self.unanimous += vote.share == 1
        self.without_answer += vote.majority is None
        self.joined += vote.joined
        self.changed += vote.changed
        if vote.correct is not None and vote.accuracy is not None:
            self.with_gold += 1
            self.correct += vote.correct
            self.accuracy += vote.accuracy

    def summary(self, gold_field: str | None, skipped: Sequence[str]) -> str:
        """The figures as one line. skipped: what did not count, and why."""
        line = (
            f"{count_text(self.groups, 'group')}, {count_text(self.completions, 'completion')}: "
            f"mean share {self.share / self.groups:.3f}, {self.unanimous:,} unanimous, "
            f"{self.without_answer:,} without any answer; canonical forms joined "
            f"{count_text(self.joined, 'vote')} that raw strings split and changed "
            f"{count_text(self.changed, 'majority', 'majorities')}"
        )
        if self.with_gold:
            part = f" in {count_text(self.with_gold, 'group')}"
            line += (
                f"; agreement with {gold_field!r}{'' if self.with_gold == self.groups else part}: "
                f"majority {self.correct / self.with_gold:.3f}, mean completion "
                f"{self.accuracy / self.with_gold:.3f}"
            )
        return line + "".join(f"; skipped {reason}" for reason in skipped)


def row_of(vote: GroupVote) -> dict[str, Any]:
    """The object that --out writes for a group."""
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
