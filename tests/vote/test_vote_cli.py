r"""`srt-fast vote`: the shapes that other systems save, what it says about them, and what it refuses."""

import io
import json
import subprocess
import sys
import time

import pytest

from srt_fast import cli


def box(*answers: str | None) -> list[str]:
    return ["no idea" if answer is None else f"so \\boxed{{{answer}}}." for answer in answers]


HALVES = box(
    "1/2", "0.5", r"\frac12", "0.5", "3", None
)  # by hand: 1/2 x4 of 6, of which 0.5 x2; 3 x1; one says nothing
SEVENS = box("7", "8", "8", "7")  # a tie: the earliest rollout's answer wins


def chat(text: str) -> list[dict]:
    return [
        {"role": "user", "content": "\\boxed{9}"},
        {"role": "assistant", "content": "\\boxed{4}"},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
        {"role": "tool", "content": "\\boxed{5}"},
    ]


def rows_of(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def vote(tmp_path, rows: list[dict], *argv: str) -> list[dict]:
    """What --out holds after a vote over these rows."""
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["vote", str(file), "--out", str(out), *argv]) == 0
    return rows_of(out)


LISTS = {
    "texts": [{"prompt": "a", "completions": HALVES}, {"prompt": "b", "completions": SEVENS}],
    "same prompt twice": [
        {"prompt": "a", "completions": HALVES},
        {"prompt": "a", "completions": SEVENS},
    ],
    "vllm": [
        {"prompt": name, "outputs": [{"index": 0, "text": text} for text in texts]}
        for name, texts in (("a", HALVES), ("b", SEVENS))
    ],
    "openai": [
        {
            "custom_id": name,
            "response": {"body": {"choices": [{"message": {"content": text}} for text in texts]}},
        }
        for name, texts in (("a", HALVES), ("b", SEVENS))
    ],
    "chats": [
        {"id": 1, "responses": [chat(text) for text in HALVES]},
        {"id": 2, "responses": [chat(text) for text in SEVENS]},
    ],
    "no name": [{"samples": HALVES}, {"samples": SEVENS}],
}
SINGLES = {  # the rows of the two groups take turns: out of order
    "texts": [
        {"prompt": name, "completion": text, "step": 3}
        for name, text in [
            pair
            for pairs in zip([("a", t) for t in HALVES], [("b", t) for t in SEVENS], strict=False)
            for pair in pairs
        ]
        + [("a", t) for t in HALVES[4:]]
    ],
    "chat": [
        {"uid": uid, "output": chat(text)}
        for uid, texts in ((8, HALVES), (7, SEVENS))
        for text in texts
    ],
    "verl": [
        {"input": name, "output": text, "score": 0.0}
        for name, texts in (("a", HALVES), ("b", SEVENS))
        for text in texts
    ],
    "null": [
        {
            "prompt": [{"role": "user", "content": name}],
            "completion": text if "box" in text else None,
            "samples": 4,
        }
        for name, texts in (("a", HALVES), ("b", SEVENS))
        for text in texts
    ],
}


@pytest.mark.parametrize("rows", [*LISTS.values(), *SINGLES.values()], ids=[*LISTS, *SINGLES])
def test_every_shape_gives_the_same_vote(tmp_path, capsys, rows):
    nested = ["--completions", "response.body.choices"] if "response" in rows[0] else []
    first, second = vote(tmp_path, rows, *nested)
    assert first["majority"] == "1/2" and first["n"] == 6 and first["valid"] == 5
    assert (first["share"], first["runner_up"]) == (round(4 / 6, 6), round(1 / 6, 6))
    assert first["split"] == [
        {"answer": "1/2", "count": 4, "spellings": {"0.5": 2, "1/2": 1, "\\frac12": 1}},
        {"answer": "3", "count": 1, "spellings": {"3": 1}},
        {"answer": None, "count": 1, "spellings": {}},
    ]
    assert second["majority"] == "7" and second["share"] == second["runner_up"] == 0.5
    assert "gold" not in first
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "1/2 (0.5, \\frac12) ×4, 3 ×1, no answer ×1" in text
        and "7 ×2, 8 ×2" in text
        and "\x1b" not in text
    )
    assert text.endswith(
        "2 groups, 10 completions: mean share 0.583, 0 unanimous, 0 without any answer; "
        "canonical forms joined 2 votes that raw strings split and changed 0 majorities"
    )


def test_settings_and_gold(tmp_path, capsys):
    r"""Raw strings elect 3 (two equal ones); the canonical form elects 1/2. Gold may be a solution; not every group has it."""
    rows = [
        {
            "question": "a",
            "replies": box("3", "3", "1/2", ".5", r"\frac{2}{4}"),
            "answer": "thus \\boxed{0.5}",
        },
        {"question": "b", "replies": box(None, None), "answer": None},
        {"question": "a", "replies": box("3", "3"), "answer": "thus \\boxed{0.5}"},
    ]
    first, second, third = vote(tmp_path, rows, "--completions", "replies", "--share-over", "valid")
    assert (first["gold"], first["correct"], first["accuracy"]) == (
        "1/2",
        True,
        0.6,
    ) and "gold" not in second
    assert (second["majority"], second["share"], third["share"], third["correct"]) == (
        None,
        0,
        1,
        False,
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "mean share 0.533, 1 unanimous, 1 without any answer" in out
    assert "joined 2 votes that raw strings split and changed 1 majority;" in out
    assert out.endswith(
        "agreement with 'answer' in 2 groups: majority 0.500, mean completion 0.300"
    )
    joined, _ = vote(
        tmp_path, rows, "--completions", "replies", "--group-by", "question", "--gold", "answer"
    )
    assert joined["n"] == 7 and joined["majority"] == "3" and joined["correct"] is False
    single = [
        {"id": 1, "text": "It is 3, or 4.", "answer": "4"},
        {"id": 1, "text": "5", "answer": "5"},
    ]  # each one's own answer
    (with_rule,) = vote(tmp_path, single, "--rule", "last_number")
    assert with_rule["majority"] == "4" and "gold" not in with_rule


def test_answers_and_prompts_are_text_not_markup_nor_control(tmp_path, capsys):
    answers = ["[/x]", "[bold]y", "日本語の答え" * 30, "\x1b[31mred\x07", "\udcff", "a" * 5000]
    rows = [
        {
            "prompt": "[/red]\x1b]0;title\x07 同じ始まり" * 20,
            "completions": box(*answers, "x" * 900),
            "gold": "[/x]",
        }
    ]
    split = vote(tmp_path, rows)[0]["split"]
    assert {"[/x]", "\udcff"} <= {answer["answer"] for answer in split} and len(split) == 7
    out = capsys.readouterr().out
    assert (
        "[/x]" in out
        and "[bold]y" in out
        and "2 others ×2" in out
        and not {"\x1b", "\x07", "\udcff"} & set(out)
    )
    assert max(map(len, out.splitlines()[:-1])) <= 160


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("", [], "in.jsonl: expected at least one JSON object, got an empty file"),
        (
            '{"prompt": 1, "text": "x"}\n{"prompt"',
            [],
            "in.jsonl, line 2: expected a JSON object, got b'{\"prompt\"'",
        ),
        ("\n[1]", [], "in.jsonl, line 2: expected a JSON object, got [1]"),
        ("[" * 100_000, [], "line 1: expected a JSON object, got b'[[["),
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
            "line 2: expected a value in field 'text' (--completions), got fields id",
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
            '{"id": 1, "text": "x", "y": []}',
            ["--gold", "y"],
            "line 1: expected text or a number in field 'y' (--gold), got []",
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
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, text, argv, message):
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(text)
    out.write_text("as before")
    assert cli.main(["vote", str(file), "--out", str(out), *argv]) == 2
    told = capsys.readouterr()
    assert (
        message in told.err
        and told.err.startswith("error:")
        and told.err.count("\n") == 1
        and not told.out
    )
    assert out.read_text() == "as before" and len(list(tmp_path.iterdir())) == 2
    assert (
        cli.main(["vote", str(tmp_path / "nothing")]) == 2
        and "which is no file" in capsys.readouterr().err
    )


def test_a_pipe_of_16384_completions_without_transformers(tmp_path):
    """From standard input to a reader that leaves early, in seconds: 512 groups of 32, in 300 words each."""
    text = "".join(
        json.dumps({"id": i % 512, "text": "so it goes " * 100 + f"\\boxed{{{i % 7}/{i % 3 + 1}}}"})
        + "\n"
        for i in range(16_384)
    )
    begun = time.perf_counter()
    code = "import sys; from srt_fast import cli; code = cli.main(); assert 'transformers' not in sys.modules; sys.exit(code)"
    done = subprocess.run(
        f"'{sys.executable}' -c \"{code}\" vote - --limit 512 | head -3",
        input=text.encode(),
        shell=True,
        capture_output=True,
    )
    assert (
        done.stdout.decode().split()[:5] == ["group", "n", "majority", "share", "2nd"]
        and not done.stderr
    )
    assert (
        time.perf_counter() - begun < 30
    )  # 5 s on a quiet machine, most of it the import of torch


def test_standard_input_and_help(monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "stdin",
        io.TextIOWrapper(io.BytesIO(b'\xef\xbb\xbf{"id": 1, "text": "\\\\boxed{2}"}\n\n')),
    )
    assert cli.main(["vote", "-", "--limit", "0"]) == 0
    assert capsys.readouterr().out.startswith("1 more groups") is True
    with pytest.raises(SystemExit) as stop:
        cli.main(["vote", "--help"])
    assert (
        stop.value.code == 0
        and "srt-fast vote samples.jsonl --completions" in capsys.readouterr().out
    )
