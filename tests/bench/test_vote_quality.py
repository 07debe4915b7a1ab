"""The vote's keys against math-verify: bench/vote_quality.py on a few of the gold answers."""

import random

import pytest

pytest.importorskip(
    "math_verify", reason="math-verify, the reference, is not installed (srt-fast[math])"
)
import vote_quality
from srt_kernels.answers.canonical import answer_key
from voter.quality import extract_golds

GOLDS = 32


@pytest.fixture(scope="module")
def golds() -> list[str]:
    if not (vote_quality.DATA / vote_quality.FILES[0]).is_file():
        pytest.skip(f"the shared data is not there (expected at {vote_quality.DATA})")
    return vote_quality.read_golds(vote_quality.DATA)


def test_the_gold_answers_key_is_found_in_the_solution(golds: list[str]):
    rows = vote_quality.read_rows(vote_quality.DATA, vote_quality.SOLUTIONS)
    extracted, missed = extract_golds(rows, answer_key)
    assert extracted >= 0.99 * len(rows), missed


def test_keys_agree_with_math_verify(golds: list[str]):
    sample = random.Random(1).sample(golds, GOLDS)
    figures, _ = vote_quality.compare(sample, [], {"ours": answer_key}, seed=1, processes=1)
    (system,) = figures["systems"]
    assert figures["without verdict"] <= 0.001 * figures["pairs"]
    assert figures["ours"]["merges not explained"] == []
    assert system["equal"] > 1000
    assert system["one key"] >= 0.97 * system["equal"], figures["ours"]["split"]
