"""A probe's result, and the document that --json writes (docs/probe.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from srt_fast.probe.advice import Advice
from srt_fast.probe.ballots import Ballot
from srt_fast.probe.cost import Cost, StepCost
from srt_fast.probe.figures import Estimate, GoldFigures, VoteFigures
from srt_fast.types import Problem

FORMAT = 1
"""Version of the document. It grows with every change that a reader may notice."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt's vote. Answers are texts as the first sample with this answer spells them."""

    id: str
    prompt: str
    majority: str | None
    share: float
    clear: bool
    gold: str | None
    pass1: float | None  # fraction of the samples that are correct. None: no gold
    majority_correct: bool | None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a probe found."""

    settings: dict[str, Any]  # model, task and sampling, as in a run's config.json, and the seed
    machine: dict[str, Any]  # device, threads and version of torch
    prompts: int
    samples: int  # of each prompt
    prompts_too_long: int
    interrupted: str | None  # the signal that ended the probe early
    unread: Estimate  # fraction of the completions without an answer
    truncated: Estimate  # fraction of the completions that reached sampling.max_new_tokens
    vote: VoteFigures
    gold: GoldFigures | None  # None: no prompt has a gold answer
    sampling: Cost
    training: Cost | None  # None: no group has a gradient, or a signal came first
    step: StepCost | None  # of the recommended sizes. None: without `training`
    advice: Advice
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """The document of --json."""
        return {"format": FORMAT} | asdict(self)


def make_row(ballot: Ballot, answers: list[str | None], problem: Problem) -> Row:
    """The row of a prompt from its vote. answers: texts of its samples."""
    has_majority = ballot.majority != 0
    correct = ballot.correct
    return Row(
        id=problem.id,
        prompt=problem.prompt,
        majority=answers[ballot.keys.index(ballot.majority)] if has_majority else None,
        share=ballot.share,
        clear=ballot.is_clear,
        gold=problem.gold,
        pass1=None if correct is None else sum(correct) / len(correct),
        majority_correct=None if correct is None else ballot.is_right(ballot.majority),
    )
