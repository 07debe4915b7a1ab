import itertools
import math

import pytest

from srt_fast.evaluation.scores import pass_at_k, summarize


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n, k in itertools.product(range(1, 8), range(1, 8)):
        for c in range(n + 1):
            if k <= n:
                subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(
                    sum(map(any, subsets)) / len(subsets), abs=1e-15
                )
    assert pass_at_k(4, [0, 1, 4], 2) == pass_at_k([4, 4, 4], [0, 1, 4], 2) == [0, 0.5, 1]
    assert pass_at_k(100_000, 1, 3) == pytest.approx(
        3e-5, rel=1e-12
    )  # 1 - (1 - 3e-5) loses five digits of this


@pytest.mark.parametrize("n, c, k", [(4, 2, 5), (4, 2, 0), (4, 5, 2), (4, -1, 2), ([4, 4], [1], 2)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match="expected .* got"):
        pass_at_k(n, c, k)


def test_summarize_worked_example():
    scores = summarize([[1, 1, 0, 1], [0, 0, 1, 0]], [True, False], [0.75, 0.5])
    expected = {
        "pass1": 0.5,
        "pass1_se": 0.25,
        "pass@2": 0.75,
        "pass@4": 1.0,
        "maj": 0.5,
        "gap": 0.0,
    }
    expected |= {"coverage@0.25": 1.0, "maj@0.25": 0.5, "coverage@0.5": 1.0, "maj@0.5": 0.5}
    expected |= {
        "coverage@0.75": 0.5,
        "maj@0.75": 1.0,
        "coverage@1": 0.0,
        "maj@1": None,
    }  # the right one is sure to 3/4
    assert scores == expected | {"vote_share": 0.625, "prompts": 2, "k": 4}


def test_standard_error_counts_prompts_not_samples():
    correct = [
        [p % 2 == 0] * 64 for p in range(100)
    ]  # all samples of a prompt agree: 100 facts, not 6400
    assert summarize(correct, [True] * 100, [1.0] * 100)["pass1_se"] == pytest.approx(
        0.5 / math.sqrt(99)
    )
    assert summarize([[True, False]], [True], [0.5])["pass1_se"] is None


@pytest.mark.parametrize(
    "correct, majority", [([], []), ([[True], []], [True, True]), ([[True]], [])]
)
def test_summarize_refuses(correct, majority):
    with pytest.raises(ValueError, match="expected .* got"):
        summarize(correct, majority, [1.0] * len(majority))
