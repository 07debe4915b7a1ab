"""`srt-fast probe` as a user types it: what it writes, refuses, and keeps after Ctrl-C."""

import json
import os
import signal

import pytest
import yaml

from srt_fast import cli
from srt_fast.config import override, to_dict
from srt_fast.sampling.hf import HFSampler
from support.models import sharpen
from support.paths import ROOT
from support.tasks import write_jsonl

HOSTILE = "\x1b]0;title\x07[/red]<script>"


@pytest.fixture
def recipe(tiny_config, tiny_model, tmp_path) -> str:
    """A file: a sharp tiny model on ten prompts, of which nine train and some have gold answers."""
    rows = [{"problem": f"{HOSTILE}{n}"} | ({"answer": "7"} if n % 2 else {}) for n in range(10)]
    changes = {
        "model.path": sharpen(tiny_model, tmp_path / "model"),
        "task": {
            "kind": "jsonl",
            "name": write_jsonl(tmp_path / "prompts.jsonl", rows),
            "params": {},
            "gold_column": "answer",
        },
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(to_dict(override(tiny_config, changes))))
    return str(file)


def keys_of(value) -> set[str]:
    """The names of all fields of a document. Names that are numbers are sizes of groups."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    names = {name for name in value if not name.isdigit()}
    return names | keys_of(list(value.values()))


def test_page_document_and_samples(recipe, tmp_path, capfd):
    out = tmp_path / "out"
    arguments = ["probe", recipe, "--samples", "8", "--prompts", "50", "--out", str(out)]
    assert cli.main([*arguments, "--json", str(tmp_path / "probe.json")]) == 0
    output = capfd.readouterr()
    document = json.loads((tmp_path / "probe.json").read_text())
    assert document == json.loads((out / "probe.json").read_text())
    assert (document["prompts"], document["samples"]) == (9, 8)
    assert document["gold"]["prompts"] == sum(row["gold"] is not None for row in document["rows"])
    assert document["sampling"]["completions"] == 72
    # A step of this recipe has six prompts. Those with two answers or more have a gradient.
    mixed = [row for row in document["rows"][:6] if row["majority"] and row["share"] < 1]
    assert document["training"]["completions"] == 8 * len(mixed) > 0
    documented = (ROOT / "docs" / "probe.md").read_text()
    settings = keys_of(document["settings"])  # docs/configuration.md has these
    missing = [name for name in keys_of(document) - settings if f"`{name}`" not in documented]
    assert not missing

    page = (out / "probe.html").read_text()
    assert page.count("&lt;script&gt;") >= 9
    assert not {"\x1b", "\x07"} & set(output.out + output.err + page)
    assert "<script" not in page
    assert cli.main(["vote", str(out / "samples.jsonl"), "--limit", "0"]) == 0
    assert "9 groups, 72 completions" in capfd.readouterr().out


def test_ctrl_c_keeps_what_was_sampled(recipe, tmp_path, capfd, monkeypatch):
    """The signal arrives while the second of nine prompts is sampled."""
    sample = HFSampler.sample
    calls = []

    def sample_and_signal(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return sample(self, *arguments, **options)

    monkeypatch.setattr(HFSampler, "sample", sample_and_signal)
    out = tmp_path / "out"
    one_prompt_at_a_time = ["--sampling.max-sequences", "4"]
    arguments = ["probe", recipe, "--samples", "4", "--out", str(out), *one_prompt_at_a_time]
    assert cli.main(arguments) == 128 + signal.SIGINT
    document = json.loads((out / "probe.json").read_text())
    assert (document["interrupted"], document["prompts"]) == ("SIGINT", 1)
    assert document["training"] is None
    assert len((out / "samples.jsonl").read_text().splitlines()) == 1
    assert "ended early by SIGINT" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "5"], "--samples: expected an even number of at least 4, got 5"),
        (["--prompts", "0"], "--prompts: expected at least 1, got 0"),
        (["--json", "/nowhere/probe.json"], "--json: expected a file in an existing folder"),
        (["--out", __file__], "--out: expected a folder"),
        (["--sampling.max-prompt-tokens", "1"], "expected prompts of at most 1 tokens, got 9"),
    ],
)
def test_bad_arguments_are_one_line(recipe, options, message, capsys):
    assert cli.main(["probe", recipe, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
