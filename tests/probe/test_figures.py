"""The figures of a probe: a case by hand, and what holds for all samples."""

import itertools
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_fast.probe.ballots import count_votes
from srt_fast.probe.figures import (
    Estimate,
    chance_above_zero,
    covariance,
    gold_figures,
    mixed_chance,
    vote_figures,
)

RIGHT, WRONG, NONE = 1, 2, 0
KEYS = st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5)


def votes_of(keys: list[list[int]], has_gold: bool = True):
    """Ballots over answers of which RIGHT is the correct one."""
    correct = [[key == RIGHT for key in row] if has_gold else None for row in keys]
    return count_votes(torch.tensor(keys), correct, "all")


def test_two_prompts_by_hand():
    """The halves of the first elect RIGHT and (a tie: the earliest) WRONG, of the second WRONG."""
    keys = [[RIGHT, RIGHT, WRONG, RIGHT], [WRONG, WRONG, WRONG, NONE]]
    ballots = votes_of(keys)
    vote = vote_figures(torch.tensor(keys), ballots)
    assert vote.share == Estimate(0.75, None)  # no spread
    assert vote.clear.value == 0.5
    assert vote.clear.error == pytest.approx(0.5)  # deviation 0.5^0.5 over 2^0.5
    assert vote.accuracy_bound == 0.75
    assert vote.top_answer == 0.5
    assert {size: value.value for size, value in vote.repeats.items()} == {2: 0.5}
    assert {size: value.value for size, value in vote.mixed.items()} == {4: 1.0}

    gold = gold_figures(ballots)
    assert gold is not None
    assert gold.pass1.value == 0.375
    assert gold.maj.value == 0.5
    assert gold.gain == Estimate(0.125, pytest.approx(0.125))
    assert gold.clear_accuracy == Estimate(0.0, None)
    assert gold.unclear_accuracy == Estimate(1.0, None)
    assert [(row.prompts, row.low) for row in gold.by_share if row.prompts] == [(2, 0.75)]
    # RIGHT on [WRONG, RIGHT] has covariance 1/2. WRONG on [RIGHT, RIGHT] has 0.
    assert gold.effect == Estimate(0.125, pytest.approx(0.125))
    assert (gold.gold_effect.value, gold.relative_effect) == (0.125, 1.0)
    # One standard error above 0, of two values: Student's t with one degree of freedom.
    assert gold.chance == pytest.approx(0.75, abs=0.01)


def test_prompts_without_gold_count_in_the_vote_only():
    keys = [[RIGHT] * 4, [WRONG] * 4]
    assert gold_figures(votes_of(keys, has_gold=False)) is None
    half = [votes_of(keys)[0], votes_of(keys, has_gold=False)[1]]
    gold = gold_figures(half)
    assert gold is not None
    assert (gold.prompts, gold.pass1, gold.chance) == (1, Estimate(1.0, None), None)


@pytest.mark.parametrize(
    ("t", "count", "chance"),  # quantiles of Student's t, from tables
    [(6.314, 2, 0.95), (-6.314, 2, 0.05), (2.015, 6, 0.95), (1.699, 30, 0.95), (0.0, 3, 0.5)],
)
def test_the_chance_is_that_of_students_t(t, count, chance):
    assert chance_above_zero(Estimate(0.1 * t, 0.1), count) == pytest.approx(chance, abs=0.01)


@given(KEYS)
@settings(max_examples=40, deadline=None)
def test_agreement_of_halves_bounds_the_accuracy_of_their_votes(keys):
    ballots = votes_of(keys)
    accuracy = statistics.fmean(b.is_right(half) for b in ballots for half in b.halves)
    # The bound is often reached. Two means of at most ten terms of at most 1 are rounded.
    bound = vote_figures(torch.tensor(keys), ballots).accuracy_bound
    assert accuracy <= bound + 10 * 2**-53


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=8), st.integers(1, 4))
def test_mixed_chance_is_that_of_all_groups(keys, size):
    groups = list(itertools.combinations(keys, size))
    assert mixed_chance(keys, size) == pytest.approx(
        statistics.fmean(len(set(group)) > 1 for group in groups)
    )


def test_covariance_is_the_first_order_change_of_pass1():
    """Three answers with 1/2, 1/4 and 1/4 of the samples, one small step of the replicator.

    The samples are the whole distribution, so the divisor is n and not n - 1.
    """
    samples = [RIGHT, RIGHT, WRONG, 3]
    correct = [key == RIGHT for key in samples]
    for label in (RIGHT, WRONG):
        rewards = [key == label for key in samples]
        mean = statistics.fmean(rewards)
        rate = sum((r - mean) / 4 for r, c in zip(rewards, correct, strict=True) if c)
        assert covariance(rewards, correct) * 3 / 4 == pytest.approx(rate)
