"""The rules of a probe's advice, on figures by hand."""

from dataclasses import replace

import pytest

from srt_fast.probe.advice import Advice, advise
from srt_fast.probe.figures import Estimate, GoldFigures, VoteFigures


def exact(value: float) -> Estimate:
    return Estimate(value, 0.01)


# 16 samples. Votes of 8 repeat on 4 points more of the prompts than votes of 4.
VOTE = VoteFigures(
    share=exact(0.5),
    clear=exact(0.6),
    top_answer=0.1,
    accuracy_bound=0.8,
    repeats={2: exact(0.4), 4: exact(0.56), 8: exact(0.6)},
    mixed={4: exact(0.5), 8: exact(0.8), 16: exact(1.0)},
)
GOLD = GoldFigures(
    prompts=64,
    pass1=exact(0.3),
    maj=exact(0.45),
    gain=exact(0.15),
    clear_accuracy=exact(0.8),
    unclear_accuracy=exact(0.2),
    by_share=[],
    effect=exact(0.1),
    gold_effect=exact(0.2),
    relative_effect=0.5,
    chance=0.96,
)
RISING = {2: exact(0.4), 4: exact(0.5), 8: exact(0.6)}


def advice(vote=VOTE, gold=None, *, unread=0.1, truncated=0.0, gold_in_all=False, can_average=True):
    """The advice on these figures."""
    return advise(
        vote,
        gold,
        unread=unread,
        truncated=truncated,
        trains_with_gold=gold_in_all,
        can_average=can_average,
    )


@pytest.mark.parametrize(
    ("given", "verdict", "words"),
    [
        (advice(gold=GOLD), "start", "45 % of the majorities and 30 % of the samples"),
        (advice(gold=replace(GOLD, chance=0.94)), "unknown", "64 prompts are too few"),
        (advice(gold=replace(GOLD, chance=None)), "unknown", "too few"),
        (advice(gold=replace(GOLD, chance=0.04)), "do not start", "more error than truth"),
        (advice(), "unknown", "are right on at most 80 % of the prompts"),
        (advice(gold=replace(GOLD, prompts=7)), "unknown", "label at least 8"),
        (advice(gold=replace(GOLD, pass1=exact(0.0), chance=None)), "do not start", "No sample"),
        (advice(replace(VOTE, top_answer=0.6)), "unknown", "may be a habit"),
        (advice(replace(VOTE, clear=exact(0.19))), "do not start", "19 % of the prompts only"),
        # Gold answers decide, however rare clear majorities are.
        (advice(replace(VOTE, clear=exact(0.19)), GOLD), "start", "more truth"),
        (advice(gold=GOLD, unread=0.6), "do not start", "task.answer_rule"),
        (advice(gold=GOLD, unread=0.6, truncated=0.5), "do not start", "max_new_tokens"),
        (
            advice(replace(VOTE, mixed={8: exact(0.09)}), GOLD),
            "do not start",
            "9 % of the groups have a gradient",
        ),
    ],
)
def test_verdicts(given: Advice, verdict, words):
    assert given.verdict == verdict
    assert words in given.reason


@pytest.mark.parametrize(
    ("given", "group_size", "prompts"),
    [
        (advice(), 8, 80),  # 512 rollouts / (8 x 0.8), already a multiple of 8
        (advice(replace(VOTE, repeats=RISING)), 16, 32),  # 512 / (16 x 1.0)
        # 8 samples: votes of 4 are the largest that can be compared.
        (
            advice(replace(VOTE, repeats={2: exact(0.4), 4: exact(0.4)}, mixed={8: exact(0.5)})),
            8,
            128,
        ),
        (advice(replace(VOTE, mixed={8: exact(0.2)})), 8, 256),  # 320, but 256 are the most
        (advice(replace(VOTE, mixed={8: exact(0.0)})), 8, 256),
        (advice(replace(VOTE, repeats={2: exact(0.4)}, mixed={4: exact(0.5)})), 4, 256),
    ],
)
def test_sizes(given: Advice, group_size, prompts):
    assert given.group_size.value == group_size
    assert given.prompts_per_step.value == prompts


@pytest.mark.parametrize(
    ("given", "design"),
    [
        (advice(gold=GOLD), "ema"),
        (advice(), "ema"),
        (advice(can_average=False), "majority"),
        (advice(unread=0.6), None),
        (advice(unread=0.6, gold_in_all=True), "oracle"),
    ],
)
def test_designs(given: Advice, design):
    assert given.design.value == design
