"""bench/vote_quality.py on a few rows: the vote's keys, its rules, and the measures themselves."""

import json
import random

import pytest

pytest.importorskip(
    "math_verify", reason="math-verify, the reference, is not installed (srt-fast[math])"
)
import vote_quality
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import read_answer
from voter.completions.cases import passes
from voter.completions.readings import ALL_STYLES, evaluate_rules, read_completions
from voter.golds import figures, sets
from voter.quality import extract_golds

GOLDS = 32
HALVES = ["\\frac12", "0.5", "x+1"]  # two values
EQUAL = {("\\frac12", "{1 \\over 2}"), ("x+1", "1 + x"), ("x+1", "$x+1$")}


@pytest.fixture(scope="module")
def golds() -> list[str]:
    if not (vote_quality.DATA / sets.FILES["MATH-500"]).is_file():
        pytest.skip(f"the shared data is not there (expected at {vote_quality.DATA})")
    return vote_quality.read_golds(vote_quality.DATA)


def test_the_gold_answers_key_is_found_in_the_solution(golds: list[str]):
    rows = vote_quality.read_rows(vote_quality.DATA, vote_quality.SOLUTIONS)
    extracted, missed = extract_golds(rows, answer_key)
    assert extracted >= 0.99 * len(rows), missed


def test_keys_agree_with_math_verify(golds: list[str]):
    sample = random.Random(1).sample(golds, GOLDS)
    found, _ = vote_quality.compare(sample, [], {"ours": answer_key}, seed=1, processes=1)
    (system,) = found["systems"]
    assert found["without verdict"] <= 0.001 * found["pairs"]
    assert found["ours"]["merges not explained"] == []
    assert system["equal"] > 1000
    assert system["one key"] >= 0.97 * system["equal"], found["ours"]["split"]


def test_a_case_passes_with_the_right_reader_only():
    case = {
        "rule": "boxed",
        "completions": [
            {"value": "a", "text": "0.5"},
            {"value": "a", "text": "1/2"},
            {"value": "b", "text": "2"},
            {"value": None, "text": "none"},
        ],
    }
    answers = {"0.5": "0.5", "1/2": "1/2", "2": "2", "none": None}
    assert passes(case, lambda text, rule: answers[text])
    for wrong in ({"1/2": "2"}, {"2": "0.5"}, {"2": None}, {"none": "3"}):
        assert not passes(case, lambda text, rule, wrong=wrong: (answers | wrong)[text]), wrong


def test_outcomes_of_a_reader_that_always_finds_7():
    rows = [
        {"style": style, "text": "", "answer": answer}
        for style, answer in [("a", "7.0"), ("a", "8"), ("a", None), ("b", "9")]
    ]
    (found,) = evaluate_rules(rows, ("boxed",), lambda text, rule: "7")
    assert found["styles"]["a"] == {"right": 1, "wrong": 1, "false answer": 1}
    assert found["styles"][ALL_STYLES] == {"right": 1, "wrong": 2, "false answer": 1}
    assert found["misread"] == [("a", "8", "7"), ("a", None, "7"), ("b", "9", "7")]
    (nothing,) = evaluate_rules(rows, ("boxed",), lambda text, rule: None)
    assert nothing["misread"] == []
    assert nothing["styles"][ALL_STYLES] == {"none": 3, "none, as there is none": 1}


def test_the_labelled_completions_tell_rules_apart():
    """A reader who knows the labels misreads nothing. Each style is read better by its own rule."""
    rows = read_completions()
    labels = {row["text"]: row["answer"] for row in rows}
    (known,) = evaluate_rules(rows, ("label",), lambda text, rule: labels[text])
    assert known["styles"][ALL_STYLES].keys() == {"right", "none, as there is none"}
    boxed, tag = evaluate_rules(rows, ("boxed", "tag"), read_answer)
    assert boxed["styles"]["examples, boxed"]["right"] > tag["styles"]["examples, boxed"]["right"]
    assert tag["styles"]["examples, tag"]["right"] > boxed["styles"]["examples, tag"]["right"]


def test_stability_counts_the_keys_that_change():
    found = figures.stability(["\\frac12"], str.strip)
    assert {name for name, _, _ in found["changed"]} == {
        "$ $",
        "\\( \\)",
        "full stop",
        "$ $ and full stop",
        "** **",
        "\\dfrac",
        "\\tfrac",
    }
    assert found["respelled"] == len(found["changed"]) + len(["\\boxed", "spaces", "new line"])


def test_merges_need_a_reason():
    found = figures.merges([*HALVES, "X+1", "7"], lambda text: 1, {("x+1", "7")})
    assert found["explained"]["one number, units aside"] == [("\\frac12", "0.5")]
    assert found["explained"]["math-verify calls them equal"] == [("x+1", "7")]
    assert found["explained"]["a word in other case"] == [("x+1", "X+1")]
    assert len(found["not explained"]) == 10 - 3


def test_splits_are_counted_by_value():
    families = {
        "\\frac12": {"{1 \\over 2}": "\\over", "1/3": "wrong"},
        "0.5": {},
        "x+1": {"1 + x": "sum reordered", "$x+1$": "$ $"},
    }
    keys = {"{1 \\over 2}": 2, "1 + x": 3, "\\frac12": 1, "0.5": 1, "x+1": 4, "$x+1$": 4}
    found = figures.splits(HALVES, families, keys.__getitem__, EQUAL)
    assert (found["values"], found["split"], found["split, not on purpose"]) == (2, 2, 1)
    assert found["causes"] == {
        "\\over": [("\\frac12", "{1 \\over 2}")],
        "sum reordered": [("x+1", "1 + x")],
    }
    joined = figures.splits(HALVES, families, lambda text: 1, EQUAL)
    assert (joined["values"], joined["split"]) == (2, 0)


def test_only_data_sets_with_short_answers_are_sets():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    assert len(sets.short_answers("chain_sum", 3, seed=0)) == 3
    assert sets.short_answers("sudoku", 3, seed=0) == []


def test_the_whole_measurement_writes_its_report(golds: list[str], tmp_path, monkeypatch, capsys):
    """On a gold of each set. Reasoning-gym's are left out: it takes 20 s to make them."""
    monkeypatch.setattr(vote_quality, "GYM_ANSWERS", 0)
    options = vote_quality.parse_options(
        ["--limit", "1", "--processes", "1", "--out", str(tmp_path)]
    )
    assert vote_quality.main(options) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [found["set"] for found in document["sets"]] == [*sets.FILES, "CHAMP"]
    assert all(found["golds"] == 1 for found in document["sets"])
    assert {of_rule["rule"] for of_rule in document["completions"]} == set(vote_quality.RULES)
    report = (tmp_path / "vote_quality.md").read_text(encoding="utf-8")
    assert "Sets of gold answers" in report
    assert max(len(block.splitlines()) for block in report.split("```")[1::2]) <= 14
