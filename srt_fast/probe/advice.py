"""Whether to start, and with which settings: stated rules over a probe's figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from srt_fast.probe.figures import GoldFigures, VoteFigures

Verdict = Literal["start", "unknown", "do not start"]

MOST_UNREAD = 0.5
"""More completions without an answer than this: the vote is over the few that are left."""
LEAST_CLEAR = 0.2
"""Fewer prompts with a clear majority than this: most labels are chance."""
LEAST_MIXED = 0.1
"""Fewer groups with a gradient than this: the prompts are too easy."""
MOST_TOP_ANSWER = 0.5
"""If one answer is the majority of more prompts, agreement may be a habit."""
LEAST_LABELLED = 8
"""Prompts with gold answers. With fewer a standard error says little."""
CONFIDENCE = 0.95
"""Chance that the vote teaches more truth than error from which on the verdict is "start"."""
DOUBLING_GAIN = 0.05
"""A group is doubled while that makes votes repeat on so many more of the prompts."""
SMALLEST_GROUP = 8
"""Group size of the smallest recipe."""
STEP_ROLLOUTS = 512
"""Rollouts of a step in groups with a gradient. The paper's step has 16 prompts x 32 rollouts. A
convention: nothing here measures how many a step needs."""
MOST_PROMPTS = 256
"""Largest recommended number of prompts of a step."""


@dataclass(frozen=True)
class Choice:
    """A setting and the reason for it, in one sentence. None: no setting helps."""

    value: int | str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What the rules say."""

    verdict: Verdict
    reason: str
    group_size: Choice
    prompts_per_step: Choice
    design: Choice  # reward.kind


def advise(
    vote: VoteFigures,
    gold: GoldFigures | None,
    *,
    unread: float,
    truncated: float,
    trains_with_gold: bool,
    can_average: bool,
) -> Advice:
    """Apply the rules.

    The verdict is that of the first rule that holds:

    1. "do not start" if more than MOST_UNREAD of the completions have no answer, or if fewer than
       LEAST_MIXED of the groups of the recommended size have a gradient;
    2. with gold answers: "unknown" for fewer than LEAST_LABELLED prompts, "do not start" if no
       sample is right, "start" from a chance of CONFIDENCE on that the vote teaches more truth than
       error, "do not start" up to 1 - CONFIDENCE, else "unknown";
    3. without: "do not start" if fewer than LEAST_CLEAR of the prompts have a clear majority;
    4. "unknown".

    The group is the smallest power of two from SMALLEST_GROUP on whose votes repeat on at most
    DOUBLING_GAIN more of the prompts than votes of half its size. Else it is the largest power of
    two that was sampled. A step has so many prompts, a multiple of 8, that groups with a gradient
    hold STEP_ROLLOUTS rollouts, up to MOST_PROMPTS. The design is `ema`, as docs/rewards.md
    measured. Where the verdict is "do not start", it is `oracle` if all prompts have gold answers,
    else none. A model whose trained weights are not float32 has no moving average: it takes
    `majority`.

    Args:
        vote: Figures of the vote.
        gold: Figures of the prompts with gold answers, if there are any.
        unread: Fraction of the completions without an answer.
        truncated: Fraction of the completions that reached sampling.max_new_tokens.
        trains_with_gold: Whether all training prompts have gold answers.
        can_average: Whether trained weights are float32, those of an adapter too.
    """
    group = _group_size(vote)
    assert isinstance(group.value, int)
    mixed = vote.mixed[group.value].value
    verdict, reason = _verdict(vote, gold, unread, truncated, mixed)
    return Advice(
        verdict=verdict,
        reason=reason,
        group_size=group,
        prompts_per_step=_prompts(group.value, mixed),
        design=_design(verdict, trains_with_gold, can_average),
    )


def _verdict(
    vote: VoteFigures, gold: GoldFigures | None, unread: float, truncated: float, mixed: float
) -> tuple[Verdict, str]:
    if unread > MOST_UNREAD:
        remedy = (
            "raise sampling.max_new_tokens"
            if truncated > unread / 2
            else "check task.answer_rule and task.template"
        )
        return "do not start", f"{_percent(unread)} of the completions have no answer: {remedy}."
    if mixed < LEAST_MIXED:
        return (
            "do not start",
            f"{_percent(mixed)} of the groups have a gradient: the model answers nearly all "
            "prompts in one way, so take harder ones.",
        )
    return _without_gold(vote) if gold is None else _with_gold(gold)


def _with_gold(gold: GoldFigures) -> tuple[Verdict, str]:
    if gold.prompts < LEAST_LABELLED:
        return (
            "unknown",
            f"{gold.prompts} prompts with gold answers are too few to tell what the vote teaches: "
            f"label at least {LEAST_LABELLED}.",
        )
    if not gold.pass1.value:
        return (
            "do not start",
            f"No sample of the {gold.prompts} prompts with gold answers is right: there is no "
            "truth that a vote could teach.",
        )
    chance = 0.5 if gold.chance is None else gold.chance
    facts = (
        f"{_percent(gold.maj.value)} of the majorities and {_percent(gold.pass1.value)} of the "
        "samples are right"
    )
    if chance >= CONFIDENCE:
        effect = 0.0 if gold.relative_effect is None else gold.relative_effect
        return (
            "start",
            f"The vote teaches more truth than error: {facts}. Its effect is {_percent(effect)} of "
            "that of gold answers.",
        )
    if chance <= 1 - CONFIDENCE:
        return "do not start", f"The vote teaches more error than truth: {facts}."
    return "unknown", f"{gold.prompts} prompts are too few to tell what the vote teaches: {facts}."


def _without_gold(vote: VoteFigures) -> tuple[Verdict, str]:
    if vote.clear.value < LEAST_CLEAR:
        return (
            "do not start",
            f"Two votes elect the same answer on {_percent(vote.clear.value)} of the prompts only: "
            "most labels would be chance.",
        )
    text = (
        "Without gold answers nothing shows that a clear majority is right. Votes of half of the "
        f"samples are right on at most {_percent(vote.accuracy_bound)} of the prompts. Label at "
        f"least {LEAST_LABELLED} prompts and probe again."
    )
    if vote.top_answer > MOST_TOP_ANSWER:
        text += (
            f" One answer is the majority of {_percent(vote.top_answer)} of the prompts, so "
            "agreement may be a habit."
        )
    return "unknown", text


def _group_size(vote: VoteFigures) -> Choice:
    for size in vote.mixed:
        if size < SMALLEST_GROUP or size not in vote.repeats:
            continue
        gain = vote.repeats[size].value - vote.repeats[size // 2].value
        if gain <= DOUBLING_GAIN:
            return Choice(
                size,
                f"Votes of {size} repeat on {_percent(vote.repeats[size].value)} of the prompts, "
                f"votes of {size // 2} on {_percent(vote.repeats[size // 2].value)}: more samples "
                "would change few labels.",
            )
    tested = max(vote.repeats)
    return Choice(
        max(vote.mixed),
        f"The largest power of two that was sampled. Votes of {tested} repeat on "
        f"{_percent(vote.repeats[tested].value)} of the prompts; more --samples would show whether "
        "larger ones repeat more often.",
    )


def _prompts(group: int, mixed: float) -> Choice:
    rollouts = group * mixed
    count = MOST_PROMPTS if not rollouts else math.ceil(STEP_ROLLOUTS / rollouts / 8) * 8
    count = min(count, MOST_PROMPTS)
    return Choice(
        count,
        f"{_percent(mixed)} of the groups of {group} have a gradient: they hold "
        f"{count * rollouts:.0f} rollouts a step (the paper: {STEP_ROLLOUTS}).",
    )


def _design(verdict: Verdict, trains_with_gold: bool, can_average: bool) -> Choice:
    if verdict == "do not start":
        if trains_with_gold:
            return Choice("oracle", "All training prompts have gold answers, and the vote is poor.")
        return Choice(None, "No reward function makes good labels of these votes.")
    if not can_average:
        return Choice(
            "majority",
            "A moving average needs float32 weights; add --monitor.action rollback.",
        )
    return Choice("ema", "It ended highest without labels in our runs (docs/rewards.md).")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
