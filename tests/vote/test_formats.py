"""The formats that `srt-fast vote` recognises by their fields, and what it skips and refuses."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_fast import cli
from srt_fast.rows.place import Place
from srt_fast.vote.groups import GroupReader
from srt_fast.vote.saved import Fields
from srt_fast.vote.vote import vote
from srt_kernels import majority_vote
from srt_kernels.answers.canonical import answer_key
from support.paths import SHARED

CASES = SHARED / "cases" / "formats"

HALF = "2/4 in lowest terms?"
SUM = "3+4?"
TEXTS = {
    HALF: [r"so \boxed{\frac12}.", r"so \boxed{0.5}.", r"so \boxed{3}.", r"so \boxed{1/2}."],
    SUM: [r"\boxed{7}", r"\boxed{8}", "no idea", r"thus \boxed{7.0}"],
}
GOLDS = {HALF: "1/2", SUM: "7"}
PAIRS = [(question, text) for question, texts in TEXTS.items() for text in texts]
EXPECTED = [("1/2", 0.75, 4, 4), ("7", 0.5, 4, 3)]


def message(text: str | None, **fields: object) -> dict:
    return {"role": "assistant", "content": text, **fields}


def user(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


def choices(texts: list[str]) -> list[dict]:
    return [{"index": i, "message": message(text)} for i, text in enumerate(texts)]


def thought(text: str) -> list[dict]:
    """A message of Anthropic, whose thinking is no answer."""
    return [{"type": "thinking", "thinking": r"\boxed{9}"}, {"type": "text", "text": text}]


def gemini(texts: list[str]) -> dict:
    thinking = {"text": r"\boxed{9}", "thought": True}
    parts = [[thinking, {"text": text}] for text in texts]
    return {"candidates": [{"content": {"role": "model", "parts": part}} for part in parts]}


def openai_response(text: str) -> dict:
    reasoning = {"type": "reasoning", "summary": []}
    part = {"type": "output_text", "text": text}
    output = [reasoning, {"type": "message", "role": "assistant", "content": [part]}]
    return {"object": "response", "output": output, "text": {"format": {"type": "text"}}}


def lists(make) -> list:
    return [make(question, texts, GOLDS[question]) for question, texts in TEXTS.items()]


def singles(make) -> list:
    return [make(question, text, GOLDS[question]) for question, text in PAIRS]


WITH_GOLD = {
    "OpenR1": lists(
        lambda q, t, g: {"problem": q, "answer": g, "generations": t, "messages": user(q)}
    ),
    "lm-evaluation-harness": [
        row | {"filter": name}
        for name in ("strict-match", "flexible-extract")
        for row in lists(
            lambda q, t, g: {"doc_id": len(q), "doc": {"x": q}, "target": g, "resps": [t]}
        )
    ],
    "lighteval": lists(
        lambda q, t, g: {
            "__doc__": {"query": q, "choices": [g], "gold_index": 0},
            "__model_response__": {"text": t, "logprobs": None},
        }
    ),
    "lighteval 0.13": lists(
        lambda q, t, g: {"doc": {"query": q, "choices": [g]}, "model_response": {"text": t}}
    ),
    "inspect": [
        {
            "id": len(question),
            "epoch": epoch,
            "input": [{"id": f"unlike{epoch}", "role": "user", "content": question}],
            "target": [GOLDS[question]],
            "messages": user(question),
            "output": {"model": "m", "choices": choices([text])},
            "error": None,
        }
        for epoch, (question, text) in enumerate(PAIRS)
    ],
    "verl": singles(
        lambda q, t, g: {"input": q, "output": t, "gts": g, "score": 1.0, "step": 1, "pred": "x"}
    ),
    "verl generation": lists(
        lambda q, t, g: {"prompt": user(q), "reward_model": {"ground_truth": g}, "responses": t}
    ),
    "NeMo-Skills": singles(
        lambda q, t, g: {
            "problem": q,
            "expected_answer": g,
            "generation": t,
            "predicted_answer": "x",
        }
    ),
    "DeepMath": [
        {"question": q, "final_answer": GOLDS[q], "r1_solution_1": t[0]}
        | {f"r1_solution_{i + 2}": text for i, text in enumerate(t[1:])}
        for q, t in TEXTS.items()
    ],
    "Qwen's evaluation": lists(
        lambda q, t, g: {"idx": 1, "question": q, "gt": g, "answer": g, "code": t, "pred": ["x"]}
    ),
    "verifiers": singles(
        lambda q, t, g: {"prompt": user(q), "completion": [message(t)], "answer": g, "info": {}}
    ),
    "OpenCompass": singles(
        lambda q, t, g: {
            "idx": t,
            "origin_prompt": [{"role": "HUMAN", "prompt": q}],
            "prediction": t,
            "gold": g,
        }
    ),
    "gold as a list": lists(lambda q, t, g: {"prompt": q, "outputs": t, "answer": [g, g + ".0"]}),
    "gold in JSON": lists(lambda q, t, g: {"prompt": q, "outputs": t, "answer": json.dumps([g])}),
}
WITHOUT_GOLD = {
    "OpenAI batch": lists(
        lambda q, t, g: {
            "id": q,
            "custom_id": q,
            "response": {"status_code": 200, "body": {"choices": choices(t)}},
            "error": None,
        }
    ),
    "OpenAI batch of Responses": [
        {"custom_id": q, "response": {"status_code": 200, "body": openai_response(t)}}
        for q, t in PAIRS
    ],
    "OpenAI chat": lists(lambda q, t, g: {"id": q, "object": "c", "choices": choices(t)}),
    "OpenAI Responses": [
        openai_response(text) | {"id": text, "metadata": {"question": question}}
        for question, text in PAIRS
    ],
    "Anthropic batch": singles(
        lambda q, t, g: {
            "custom_id": q,
            "result": {"type": "succeeded", "message": message(None) | {"content": thought(t)}},
        }
    ),
    "Gemini batch": lists(lambda q, t, g: {"key": q, "response": gemini(t)}),
    "Gemini on Vertex": lists(
        lambda q, t, g: {"request": {"contents": q}, "status": "", "response": gemini(t)}
    ),
    "TRL": singles(lambda q, t, g: {"step": 1, "prompt": user(q), "completion": [message(t)]}),
    "OpenRLHF": singles(lambda q, t, g: {"input": q, "output": t, "reward": 0.1}),
    "SGLang": singles(lambda q, t, g: {"text": t, "meta_info": {"id": "x"}, "prompt": q}),
    "TGI": singles(lambda q, t, g: {"inputs": q, "generated_text": t}),
    "distilabel": singles(lambda q, t, g: {"instruction": q, "generation": t, "model_name": "m"}),
    "distilabel, grouped": lists(lambda q, t, g: {"instruction": q, "generation": t}),
    "ollama": singles(lambda q, t, g: {"model": "m", "message": message(t), "prompt": q}),
    "open-instruct": singles(
        lambda q, t, g: {"messages": [*user(q), message(t)], "model_completion": t}
    ),
    "messages": singles(lambda q, t, g: {"messages": [*user(q), message(t)]}),
    "ShareGPT": singles(
        lambda q, t, g: {
            "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": t}]
        }
    ),
    "pipeline": lists(lambda q, t, g: [{"generated_text": text} for text in t]),
    "list in a list": lists(lambda q, t, g: {"prompt": q, "completions": [t]}),
    "list in a text": lists(lambda q, t, g: {"prompt": q, "completions": json.dumps(t)}),
    "numbered": lists(lambda q, t, g: {"prompt": q, "outputs": dict(enumerate(t))}),
    "list of answers": lists(lambda q, t, g: {"prompt": q, "outputs": [message(x) for x in t]}),
    "options of a question": singles(
        lambda q, t, g: {"question": q, "choices": ["A", "B"], "response": t}
    ),
    "two shapes": [
        {"prompt": HALF, "completions": TEXTS[HALF]},
        *({"prompt": SUM, "completion": text} for text in TEXTS[SUM][:2]),
        {"prompt": SUM, "response": TEXTS[SUM][2:]},
    ],
}


def run(folder: Path, rows: list, *options: str) -> list[dict]:
    """What --out holds after a vote over the rows."""
    file = folder / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_file(folder, file, *options)


def run_file(folder: Path, file: Path, *options: str) -> list[dict]:
    out = folder / "out.jsonl"
    assert cli.main(["vote", str(file), "--out", str(out), *options]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def figures(groups: list[dict]) -> list[tuple]:
    return [(row["majority"], row["share"], row["n"], row["valid"]) for row in groups]


@pytest.mark.parametrize("rows", WITH_GOLD.values(), ids=WITH_GOLD)
def test_formats_with_gold_answers(rows: list, tmp_path: Path):
    groups = run(tmp_path, rows)
    assert figures(groups) == EXPECTED
    assert [row["gold"] for row in groups] == ["1/2", "7"]


@pytest.mark.parametrize("rows", WITHOUT_GOLD.values(), ids=WITHOUT_GOLD)
def test_formats_without_gold_answers(rows: list, tmp_path: Path):
    groups = run(tmp_path, rows)
    assert figures(groups) == EXPECTED
    assert "gold" not in groups[0]


VOTES_OF_CASES = {
    "table.csv": [("7", 0.5, 2, 2)],
    "deepmath.jsonl": [("1/2", 0.666667, 3, 3), ("7", 0.333333, 3, 2)],
    "dictcols.jsonl": [("1/2", 1.0, 2, 2), ("7", 0.5, 2, 2)],
    "glob_1.jsonl": EXPECTED[:1],
    "openai_batch_error.jsonl": EXPECTED[:1],
    "mixed.jsonl": [EXPECTED[0], ("7", 0.5, 2, 2)],
    "mixed2.jsonl": [("8", 0.5, 4, 3)],
    "mixed3.jsonl": [("7", 1.0, 2, 2)],
    "think.jsonl": [(None, 0.0, 4, 0)] * 2,  # the text is null: thinking is no answer
    "opencompass.json": [("1/2", 1.0, 1, 1), ("7", 1.0, 1, 1)],
}
ERRORS_OF_CASES = {
    "blank.jsonl": "expected at least one row with completions, got an empty file",
    "empty.jsonl": "expected at least one row with completions, got an empty file",
    "comment.jsonl": "line 1: expected a JSON object, got '# a comment'",
    "control.jsonl": "line 1: expected a JSON object, got",
    "latin1.jsonl": "line 1: expected UTF-8, got byte 0xf3",
    "truncated.jsonl": "line 2: expected a JSON object, got",
    "tokens.jsonl": "line 1, field 'completions': expected text",
}
OPTIONS_OF_CASES = {
    "openai_batch_n1.jsonl": ("--group-by", "custom_id", "--group-match", "(.*)-s"),
}


@pytest.mark.skipif(not CASES.is_dir(), reason=f"needs the saved files of {CASES}")
def test_every_file_of_the_cases_gives_a_vote_or_one_error(tmp_path: Path, capsys):
    for file in sorted(CASES.iterdir()):
        options = OPTIONS_OF_CASES.get(file.name, ())
        if file.name in ERRORS_OF_CASES:
            assert cli.main(["vote", str(file)]) == 2
            error = capsys.readouterr().err
            assert ERRORS_OF_CASES[file.name] in error and error.count("\n") == 1, file.name
            continue
        groups = figures(run_file(tmp_path, file, *options))
        assert groups == VOTES_OF_CASES.get(file.name, EXPECTED), file.name


def test_skipped_rows_are_counted_by_their_reasons(tmp_path: Path, capsys):
    rows = [
        {"custom_id": "a", "response": None, "error": {"code": "batch_expired"}},
        {"custom_id": "a", "response": {"status_code": 429, "body": {"error": {}}}, "error": None},
        {"custom_id": "a", "result": {"type": "errored", "error": {}}},
        {"key": "a", "error": {"code": 3}},
        {"key": "a", "response": {"candidates": [], "promptFeedback": {"blockReason": "SAFETY"}}},
        {"epoch": 1, "id": 1, "input": "a", "output": {"choices": choices(["x"])}, "error": "x"},
        {"prompt": "a", "response": None, "error": "timeout"},
        {"prompt": "a", "response": None},
        {"prompt": "a", "response": r"\boxed{2}", "error": ""},
        {"prompt": "b", "solution_1": r"\boxed{3}", "solution_2": None, "answer": ["1", "2"]},
        {"prompt": "c", "solution_1": r"\boxed{3}", "solution_2": r"\boxed{4}", "answer": "4"},
    ]
    groups = run(tmp_path, rows)
    assert figures(groups) == [("2", 0.5, 2, 1), ("3", 1.0, 1, 1), ("3", 0.5, 2, 2)]
    out = " ".join(capsys.readouterr().out.split())
    assert "agreement with 'answer' in 1 group" in out
    assert "skipped 7 failed requests (first: " in out
    assert "line 1); skipped 1 empty column (first: " in out
    assert "line 10); skipped 1 gold with several answers (first: " in out


def test_only_failed_requests_are_an_error_that_counts_them(tmp_path: Path, capsys):
    file = tmp_path / "in.jsonl"
    file.write_text('{"custom_id": "a", "response": null, "error": {"code": "x"}}\n' * 3)
    assert cli.main(["vote", str(file)]) == 2
    assert "got only 3 failed requests (first: " in capsys.readouterr().err


def test_steps_of_a_training_log_vote_apart(tmp_path: Path):
    rows = [
        {"step": step, "prompt": "a", "completion": rf"\boxed{{{answer}}}"}
        for step, answer in ((1, 5), (1, 5), (2, 6), (2, 6))
    ]
    assert figures(run(tmp_path, rows)) == [("5", 1.0, 2, 2), ("6", 1.0, 2, 2)]
    assert len(run(tmp_path, rows, "--group-by", "prompt")) == 1


def test_paths_name_completions_groups_and_gold(tmp_path: Path):
    rows = [
        {"a": {"id": f"{q}-s{i}"}, "b": [{"c": {"d": t}}, {"c": {"d": t}}], "e": [{"f": GOLDS[q]}]}
        for i, (q, t) in enumerate(PAIRS)
    ]
    options = ["--completions", "b.*.c.d", "--group-by", "a.id", "--gold", "e.0.f"]
    groups = run(tmp_path, rows, *options, "--group-match", "(.*)-s")
    assert [(row["majority"], row["share"], row["n"]) for row in groups] == [
        ("1/2", 0.75, 8),
        ("7", 0.5, 8),
    ]
    assert [row["correct"] for row in groups] == [True, True]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"samples": [["x", "y"], ["z", "w"]]}, [], "field 'samples': expected text, an object"),
        ({"prompt": ["a", "b"], "output": ["x", "y"]}, [], "got a list of 2 prompts beside as"),
        ({"samples": "['x', 'y']"}, [], "expected a text, or a list in JSON, got a list that is"),
        ({"id": "a", "text": "x"}, ["--group-match", "("], "expected a regular expression, got"),
        ({"id": "a", "text": "x"}, ["--group-match", "b"], "a group's name that matches 'b'"),
        ({"a": {"b": 1}}, ["--completions", "a.c"], "(--completions), got fields b in 'a'"),
        ({"a": {"b": 1}}, ["--completions", "z_*"], "field 'z_*' (--completions), got fields a"),
    ],
)
def test_what_cannot_be_read_is_one_error(row: dict, options: list, message: str, tmp_path, capsys):
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(row))
    assert cli.main(["vote", str(file), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@settings(max_examples=100, deadline=None)
@given(
    groups=st.lists(st.lists(st.sampled_from(["1/2", "0.5", ".50", "3", "x", None]), min_size=1)),
    share_over=st.sampled_from(["all", "valid"]),
)
def test_the_vote_is_that_of_the_trainer(groups: list[list[str | None]], share_over):
    reader = GroupReader(Fields(), "boxed")
    for number, answers in enumerate([["7"], *groups], start=1):
        texts = ["none" if answer is None else rf"\boxed{{{answer}}}" for answer in answers]
        reader.add(Place("x", "line", number), {"completions": texts})
    votes = list(vote(reader.finish("x"), share_over))
    keys = [answer_key(answer) for answers in [["7"], *groups] for answer in answers]
    cu_groups = torch.tensor([0, 1, *map(len, groups)]).cumsum(0).int()
    trainer = majority_vote(torch.tensor(keys), cu_groups, share_over=share_over)
    assert [answer_key(each.majority) for each in votes] == trainer.majority.tolist()
    assert [each.share for each in votes] == pytest.approx(trainer.share.tolist(), abs=1e-6)
    assert [each.runner_up for each in votes] == pytest.approx(trainer.runner_up.tolist(), abs=1e-6)
