"""The vote's keys against math-verify: bench/vote_quality.py on a few of the gold answers."""

import random

import pytest

pytest.importorskip(
    "math_verify", reason="math-verify, the judge, is not installed (pip install srt-fast[math])"
)
import vote_quality  # noqa: E402
from srt_kernels.answers.canonical import answer_key  # noqa: E402

GOLDS = 32


@pytest.fixture(scope="module")
def golds():
    if not (vote_quality.DATA / vote_quality.FILES[0]).is_file():
        pytest.skip(f"the shared data is not there (expected at {vote_quality.DATA})")
    rows = [
        row
        for name in vote_quality.FILES
        for row in vote_quality.read_rows(vote_quality.DATA, name)
    ]
    return list(dict.fromkeys(row["answer"] for row in rows))


def test_the_gold_answers_key_is_found_in_the_solution(golds):
    rows = vote_quality.read_rows(vote_quality.DATA, "math500_solutions.jsonl")
    right, missed = vote_quality.extraction(rows, answer_key)
    assert right >= 0.99 * len(rows), missed


def test_keys_agree_with_the_judge(golds):
    some = random.Random(1).sample(golds, GOLDS)
    found, _ = vote_quality.compare(some, [], {"ours": answer_key}, seed=1, judges=1)
    ours = found["systems"][0]
    assert found["without verdict"] <= 0.001 * found["pairs"]
    assert found["ours"]["merges not explained"] == []
    assert ours["equal"] > 1000
    assert ours["one key"] >= 0.97 * ours["equal"], found["ours"]["split"]
