"""Scores against counting subsets and a worked example."""

import itertools
import math

import pytest

from srt_fast.evaluation.scores import pass_at_k, summarize


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n in range(1, 8):
        for k, c in itertools.product(range(1, n + 1), range(n + 1)):
            samples = [True] * c + [False] * (n - c)
            subsets = list(itertools.combinations(samples, k))
            share = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(n, c, k) == share  # two integers, divided once, in both


def test_pass_at_k_keeps_its_digits_for_many_samples():
    """1 - (1 - 3e-5) would lose five digits."""
    assert pass_at_k(100_000, 1, 3) == 3e-5


@pytest.mark.parametrize("n, c, k", [(4, 2, 5), (4, 2, 0), (4, 5, 2), (4, -1, 2)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match="expected .* got"):
        pass_at_k(n, c, k)


def test_summarize_worked_example():
    scores = summarize([[1, 1, 0, 1], [0, 0, 1, 0]], [True, False], [0.75, 0.5])
    assert scores == {
        "pass1": 0.5,
        "pass1_se": 0.25,
        "pass@2": 0.75,
        "pass@4": 1.0,
        "maj": 0.5,
        "gap": 0.0,
        "vote_share": 0.625,
        "coverage@0.25": 1.0,
        "maj@0.25": 0.5,
        "coverage@0.5": 1.0,
        "maj@0.5": 0.5,
        "coverage@0.75": 0.5,
        "maj@0.75": 1.0,  # only the right one has this share
        "coverage@1": 0.0,
        "maj@1": None,
        "prompts": 2,
        "k": 4,
    }


def test_standard_error_counts_prompts_not_samples():
    """All samples of a prompt agree: 100 independent facts, not 6400."""
    correct = [[prompt % 2 == 0] * 64 for prompt in range(100)]
    scores = summarize(correct, [True] * 100, [1.0] * 100)
    assert scores["pass1_se"] == pytest.approx(0.5 / math.sqrt(99))
    assert summarize([[True, False]], [True], [0.5])["pass1_se"] is None


@pytest.mark.parametrize(
    "correct, majority_correct", [([], []), ([[True], []], [True, True]), ([[True]], [])]
)
def test_summarize_refuses(correct, majority_correct):
    with pytest.raises(ValueError, match="expected .* got"):
        summarize(correct, majority_correct, [1.0] * len(majority_correct))
