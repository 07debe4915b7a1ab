"""What a user types: commands, their errors and their exit codes."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from srt_fast import cli
from srt_fast.config import override, to_dict
from srt_fast.train import Trainer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lrr: 1}", "train.lrr: unknown field"),
        ("train: {lr: fast}", "train.lr: expected a valid number"),
        (
            "sampling: {group_size: 1}",
            "sampling.group_size: expected greater than or equal to 2, got 1",
        ),
        ("recipe: quickstrat", "expected a recipe (quickstart"),
        ("recipe: [3]", "expected a recipe (quickstart"),
        ("model: foo", "model: expected a table of fields"),
        ("feedback: {kind: majority}", "feedback: unknown field"),
        ("- 1", "expected a table of fields"),
        ("a: [", "expected valid YAML"),
    ],
)
def test_bad_files_name_file_and_field(tmp_path, capsys, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    assert cli.main(["train", str(tmp_path / "bad.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "bad.yaml" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--train.lrr", "1"], "--train.lrr"),
        (["train", "--train.lr", "fast"], "--train.lr"),
        (["train", "--feedback.kind", "majority"], "--feedback.kind"),
        (["train", "--sampling.group-size", "1"], "group_size"),
        (["train", "--model.dtype", "bfloat16"], "expected float32 with reward.kind 'ema'"),
    ],
)
def test_bad_arguments_name_the_field(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    # tyro draws a box around its errors and breaks their lines.
    words = "".join(capsys.readouterr()).replace("│", " ").split()
    assert message in " ".join(words)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "got 'fly'"),
        (["train", "unknown"], "expected a recipe (quickstart"),
        (["train", "./nowhere"], "does not exist"),
        (["recipes", "./nowhere"], "does not exist"),
        (["train", "--resume", "/nowhere"], "without one"),
        (["eval", "--resume", "/nowhere"], "--resume: expected with srt-fast train only"),
        (["probe", "--resume", "/nowhere"], "--resume: expected with srt-fast train only"),
        (["train", "unknown.yaml"], "does not exist"),
        (["report", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_targets_are_one_line(argv, message, capsys):
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error:")
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["train", "probe", "vote", "experiment", "plan"])
def test_help_does_not_import_torch(command):
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "srt_fast.cli", command, "--help"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0
    assert process.stdout.startswith(f"usage: srt-fast {command}")
    assert "| torch\n" not in process.stderr  # torch and transformers take seconds to import


def test_help_shows_every_field_with_its_docstring(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--train.lr FLOAT Learning rate of AdamW. (default: 0.0001)" in words
    assert '"auto": CUDA if torch finds a device, else the CPU. (default: auto)' in words


def test_train_eval_and_report_from_the_command_line(tiny_config, tmp_path, capsys):
    """Of train and eval, the last line of standard output is a JSON document."""
    folder = tmp_path / "run"
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(to_dict(override(tiny_config, {"train.steps": 2}))))
    assert cli.main(["train", str(file)]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["run_dir"] == str(folder)
    assert summary["steps"] == 2
    assert cli.main(["eval", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pass1"] == summary["pass1_end"]
    (folder / "report.html").unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").is_file()


def test_a_hostile_name_reaches_no_terminal_and_no_page(tiny_config, tmp_path, capfd):
    """Model, run folder, recipe, prompts and gold answers hold markup and escape sequences."""
    hostile = "\x1b]0;title\x07\x1b[2J\r[/red]<script>"
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"problem": f"{hostile}{number}", "answer": hostile} for number in range(20)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = shutil.copytree(tiny_config.model.path, tmp_path / hostile)
    folder = tmp_path / f"run{hostile}"
    changes = {
        "recipe": hostile,
        "run_dir": str(folder),
        "model.path": str(model),
        "task": {"kind": "jsonl", "name": str(prompts), "params": {}, "gold_column": "answer"},
        "train.steps": 1,
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(to_dict(override(tiny_config, changes))))
    assert cli.main(["train", str(file)]) == 0
    page = (folder / "report.html").read_text()
    output = capfd.readouterr()
    assert "\\x1b]0;title\\x07" in output.out
    assert not {"\x1b", "\x07", "\r"} & set(output.out + output.err + page)
    assert "<script" not in page


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, tiny_config, capsys):
    """A file lies where the folder should be."""
    (tmp_path / "file").write_text("")
    file = tmp_path / "run.yaml"
    config = override(tiny_config, {"run_dir": str(tmp_path / "file" / "run")})
    file.write_text(yaml.safe_dump(to_dict(config)))
    assert cli.main(["train", str(file)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: Not a directory: {tmp_path / 'file' / 'run'}"


def test_no_memory_is_one_line_that_says_how_to_go_on(tmp_path, tiny_config, capsys, monkeypatch):
    """A step asks for a petabyte."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(to_dict(tiny_config)))
    monkeypatch.setattr(Trainer, "train_step", lambda self: torch.empty(10**15))
    assert cli.main(["train", str(file)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: out of memory: ")
    assert f"srt-fast train --resume {tmp_path / 'run'}" in error
