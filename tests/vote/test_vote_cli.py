"""`srt-fast vote`: the shapes that other systems save, what it says about them, what it refuses."""

import io
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srt_fast import cli


def box(*answers: str | None) -> list[str]:
    """A completion for each answer."""
    return ["no idea" if answer is None else f"so \\boxed{{{answer}}}." for answer in answers]


# By hand: 1/2 has 4 of 6 votes, and 0.5 is its most common spelling (2). 3 has one. One has none.
HALVES = box("1/2", "0.5", r"\frac12", "0.5", "3", None)
# A tie: the answer of the earliest rollout wins.
SEVENS = box("7", "8", "8", "7")
GROUPS = {"a": HALVES, "b": SEVENS}
PAIRS = [(name, text) for name, texts in GROUPS.items() for text in texts]


def alternate() -> list[tuple[str, str]]:
    """The pairs of the two groups in turns, out of order."""
    first = [("a", text) for text in HALVES]
    second = [("b", text) for text in SEVENS]
    pairs = itertools.zip_longest(first, second)
    return [pair for two in pairs for pair in two if pair is not None]


def chat(text: str) -> list[dict]:
    """A chat whose last assistant message with text is the text."""
    return [
        {"role": "user", "content": "\\boxed{9}"},
        {"role": "assistant", "content": "\\boxed{4}"},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
        {"role": "tool", "content": "\\boxed{5}"},
        {"role": "assistant", "content": "\n"},
    ]


def openai_response(texts: list[str]) -> dict:
    return {"body": {"choices": [{"message": {"content": text}} for text in texts]}}


def vote(folder: Path, rows: list[dict], *options: str) -> list[dict]:
    """What --out holds after a vote over the rows."""
    file = folder / "in.jsonl"
    out = folder / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["vote", str(file), "--out", str(out), *options]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


LISTS = {
    "texts": [{"prompt": name, "completions": texts} for name, texts in GROUPS.items()],
    "same prompt twice": [{"prompt": "a", "completions": texts} for texts in GROUPS.values()],
    "vllm": [
        {"prompt": name, "outputs": [{"index": 0, "text": text} for text in texts]}
        for name, texts in GROUPS.items()
    ],
    "openai": [
        {"custom_id": name, "response": openai_response(texts)} for name, texts in GROUPS.items()
    ],
    "chats": [
        {"id": number, "responses": [chat(text) for text in texts]}
        for number, texts in enumerate(GROUPS.values(), start=1)
    ],
    "no name": [{"samples": texts} for texts in GROUPS.values()],
}
SINGLES = {
    "texts": [{"prompt": name, "completion": text, "step": 3} for name, text in alternate()],
    "chat": [{"uid": ord(name), "output": chat(text)} for name, text in PAIRS],
    "verl": [{"input": name, "output": text, "score": 0.0} for name, text in PAIRS],
    "null": [
        {
            "prompt": [{"role": "user", "content": name}],
            "completion": text if "box" in text else None,
            "samples": 4,
        }
        for name, text in PAIRS
    ],
}


@pytest.mark.parametrize("rows", [*LISTS.values(), *SINGLES.values()], ids=[*LISTS, *SINGLES])
def test_every_shape_gives_the_same_vote(tmp_path: Path, capsys, rows: list[dict]):
    nested = ["--completions", "response.body.choices"] if "response" in rows[0] else []
    first, second = vote(tmp_path, rows, *nested)
    assert first["majority"] == "1/2"
    assert (first["n"], first["valid"]) == (6, 5)
    assert (first["share"], first["runner_up"]) == (round(4 / 6, 6), round(1 / 6, 6))
    assert first["split"] == [
        {"answer": "1/2", "count": 4, "spellings": {"0.5": 2, "1/2": 1, "\\frac12": 1}},
        {"answer": "3", "count": 1, "spellings": {"3": 1}},
        {"answer": None, "count": 1, "spellings": {}},
    ]
    assert "gold" not in first
    assert second["majority"] == "7"
    assert second["share"] == second["runner_up"] == 0.5
    text = " ".join(capsys.readouterr().out.split())
    assert "1/2 (0.5, \\frac12) ×4, 3 ×1, no answer ×1" in text
    assert "7 ×2, 8 ×2" in text
    assert "\x1b" not in text
    assert text.endswith(
        "2 groups, 10 completions: mean share 0.583, 0 unanimous, 0 without any answer; canonical "
        "forms joined 2 votes that raw strings split and changed 0 majorities"
    )


SPELLINGS = box("3", "3", "1/2", ".5", r"\frac{2}{4}")
SOLVED = [
    {"question": "a", "replies": SPELLINGS, "answer": "thus \\boxed{0.5}"},
    {"question": "b", "replies": box(None, None), "answer": None},
    {"question": "a", "replies": box("3", "3"), "answer": "thus \\boxed{0.5}"},
]


def test_settings_and_gold(tmp_path: Path, capsys):
    r"""Raw strings elect 3 (two equal ones). The canonical form elects 1/2.

    The gold answer may be a solution. Not every group has one.
    """
    first, second, third = vote(
        tmp_path, SOLVED, "--completions", "replies", "--share-over", "valid"
    )
    assert (first["gold"], first["correct"], first["accuracy"]) == ("1/2", True, 0.6)
    assert (second["majority"], second["share"]) == (None, 0)
    assert "gold" not in second
    assert (third["share"], third["correct"]) == (1, False)
    out = " ".join(capsys.readouterr().out.split())
    assert "mean share 0.533, 1 unanimous, 1 without any answer" in out
    assert "joined 2 votes that raw strings split and changed 1 majority;" in out
    assert out.endswith(
        "agreement with 'answer' in 2 groups: majority 0.500, mean completion 0.300"
    )


def test_group_by_joins_rows_with_lists(tmp_path: Path):
    options = ["--completions", "replies", "--group-by", "question", "--gold", "answer"]
    joined, _ = vote(tmp_path, SOLVED, *options)
    assert (joined["n"], joined["majority"], joined["correct"]) == (7, "3", False)


def test_an_answer_field_that_differs_in_a_group_is_no_gold(tmp_path: Path):
    rows = [
        {"id": 1, "text": "It is 3, or 4.", "answer": "4"},
        {"id": 1, "text": "5", "answer": "5"},
    ]
    (group,) = vote(tmp_path, rows, "--rule", "last_number")
    assert group["majority"] == "4"
    assert "gold" not in group


def test_answers_and_prompts_are_text_not_markup_nor_control(tmp_path: Path, capsys):
    answers = ["[/x]", "[bold]y", "日本語の答え" * 30, "\x1b[31mred\x07", "\udcff", "a" * 5000]
    prompt = "[/red]\x1b]0;title\x07 同じ始まり" * 20
    row = {"prompt": prompt, "completions": box(*answers, "x" * 900), "gold": "[/x]"}
    (group,) = vote(tmp_path, [row])
    assert {"[/x]", "\udcff"} <= {answer["answer"] for answer in group["split"]}
    assert len(group["split"]) == 7
    out = capsys.readouterr().out
    assert "[/x]" in out
    assert "[bold]y" in out
    assert "2 others ×2" in out
    assert not {"\x1b", "\x07", "\udcff"} & set(out)
    assert max(map(len, out.splitlines()[:-1])) <= 160


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", [], "in.jsonl: expected at least one row with completions, got an empty file"),
        (
            '{"prompt": 1, "text": "x"}\n{"prompt"',
            [],
            "in.jsonl, line 2: expected a JSON object, got '{\"prompt\"' (Expecting ':' delimiter, "
            "column 10; the file may be cut)",
        ),
        ("\n[1]", [], "in.jsonl, row 1: expected a JSON object, got 1"),
        ("[" * 100_000, [], "line 1: expected a JSON object with at most 64 lists"),
        ('{"id": 1, "text": ' + "[" * 500 + "]" * 500 + "}", [], "line 1: expected a JSON object"),
        (
            '{"prompt": 1, "reply": "x"}',
            [],
            "line 1: expected a field with completions (completions, responses",
        ),
        (
            '{"completion": "x", "step": 1}',
            [],
            "line 1: expected a field that says which completions belong together (prompt,",
        ),
        (
            '{"id": 1, "text": "x"}\n{"text": "x"}',
            [],
            "line 2: expected a value in field 'id' (--group-by), got fields text",
        ),
        (
            '{"id": 1, "text": "x"}\n{"id": 1}',
            [],
            "line 2: expected a field with completions (completions, responses,",
        ),
        (
            '{"id": 1, "text": "x"}\n{"id": 1, "text": 3.5}',
            [],
            "line 2, field 'text': expected text, an object with text",
        ),
        (
            '{"id": 1, "samples": ["x", ["y"]]}',
            [],
            "line 1, field 'samples': expected text, an object with text",
        ),
        (
            '{"id": 1, "samples": [[{"role": "user", "content": "y"}]]}',
            [],
            "expected an assistant message among the chat's",
        ),
        (
            '{"id": 1, "samples": [[{"type": "text", "text": "x"}, {"type": "text"}]]}',
            [],
            "line 1, field 'samples': expected text in a message's part, got {'type': 'text'}",
        ),
        (
            '{"\\u001b]0;x": 1}',
            [],
            "got fields \\x1b]0;x; name it with --completions",
        ),
        (
            '{"id": 1, "text": "x"}',
            ["--completions", "a.b"],
            "expected a value in field 'a.b' (--completions), got fields id, text",
        ),
        (
            '{"id": 1, "text": "x"}',
            ["--gold", "y"],
            "line 1: expected a value in field 'y' (--gold), got fields id, text",
        ),
        (
            '{"id": 1, "text": "x", "y": {}}',
            ["--gold", "y"],
            "line 1: expected text, a number or a list of them in field 'y' (--gold), got {}",
        ),
        (
            '{"id": 1, "text": "x", "y": 1}\n{"id": 1, "text": "x", "y": 2}',
            ["--gold", "y"],
            "line 2: expected one gold answer in a group, got '2' after '1'",
        ),
        ('{"id": 1, "text": "x"}', ["--limit", "-1"], "--limit: expected at least 0, got -1"),
        (
            '{"id": 1, "text": "x"}',
            ["--out", "."],
            "--out: expected a file, got '.', which is none",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys, text: str, options: list[str], message: str
):
    file = tmp_path / "in.jsonl"
    out = tmp_path / "out.jsonl"
    file.write_text(text)
    out.write_text("as before")
    assert cli.main(["vote", str(file), "--out", str(out), *options]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error:")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not output.out
    assert out.read_text() == "as before"
    assert len(list(tmp_path.iterdir())) == 2


TEXTS = st.sampled_from(["text", "content", "role", "type", "id", "prompt", "assistant", "a\x1b"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda values: st.lists(values, max_size=2) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.dictionaries(TEXTS | st.sampled_from(["samples", "completions", "output"]), JSON),
        min_size=1,
    ),
    options=st.lists(
        st.sampled_from(["--gold=id", "--group-by=prompt", "--rule=tag", "--limit=1"])
    ),
)
def test_any_rows_give_a_vote_or_one_line(tmp_path: Path, capsys, rows: list, options: list[str]):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = cli.main(["vote", str(file), *options])
    output = capsys.readouterr()
    assert code == 0 or output.err.startswith("error:") and output.err.count("\n") == 1
    assert not {"\x1b", "\r"} & set(output.out + output.err)


def test_a_missing_file(tmp_path: Path, capsys):
    assert cli.main(["vote", str(tmp_path / "missing")]) == 2
    assert "expected a file, a folder with data files or a pattern" in capsys.readouterr().err


def test_a_pipe_of_16384_completions_without_transformers():
    """From standard input to a reader that leaves early: 512 groups of 32, of 300 words each."""
    rows = [
        {"id": i % 512, "text": "so it goes " * 100 + f"\\boxed{{{i % 7}/{i % 3 + 1}}}"}
        for i in range(16_384)
    ]
    code = (
        "import sys; from srt_fast import cli; code = cli.main(); "
        "assert 'transformers' not in sys.modules; sys.exit(code)"
    )
    start = time.perf_counter()
    process = subprocess.run(
        f"'{sys.executable}' -c \"{code}\" vote - --limit 512 | head -3",
        input="".join(json.dumps(row) + "\n" for row in rows).encode(),
        shell=True,
        capture_output=True,
    )
    assert process.stdout.decode().split()[:5] == ["group", "n", "majority", "share", "2nd"]
    assert not process.stderr
    # 5 s on a quiet machine, most of it the import of torch.
    assert time.perf_counter() - start < 30


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys):
    """With a byte order mark and an empty line."""
    data = b'\xef\xbb\xbf{"id": 1, "text": "\\\\boxed{2}"}\n\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert cli.main(["vote", "-", "--limit", "0"]) == 0
    assert capsys.readouterr().out.startswith("1 more groups")


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["vote", "--help"])
    assert stop.value.code == 0
    assert (
        "srt-fast vote samples.jsonl --completions response --group-by" in capsys.readouterr().out
    )
