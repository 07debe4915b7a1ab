import json
import subprocess
import sys

import pytest
import yaml

from srt_fast import cli
from srt_fast.config import override, to_dict
from srt_fast.config.recipes import RECIPES, for_model


def configure(*argv: str):
    return cli._configure(list(argv), "train")[0]


def test_recipe_file_and_command_line_in_order_of_precedence(tmp_path):
    yaml_file, toml_file = tmp_path / "run.yaml", tmp_path / "run.toml"
    yaml_file.write_text(
        "recipe: quickstart\ntrain: {lr: 0.5, steps: 7}\ntask: {params: {max_digits: 2}}\n"
    )
    toml_file.write_text("[train]\nlr = 0.5\nsteps = 7\n[task.params]\nmax_digits = 2\n")
    for file in (yaml_file, toml_file):
        for argv in ((str(file),), ("quickstart", "--config", str(file))):
            config = configure(
                *argv, "--train.steps", "9", "--train.objective-overrides", "clip_high=0.28"
            )
            assert (config.train.lr, config.train.steps, config.task.params) == (
                0.5,
                9,
                {"max_digits": 2},
            )
            assert config.objective().clip_high == 0.28 and config.recipe == "quickstart"
    assert configure() == configure("quickstart") == configure("--recipe", "quickstart")


def test_a_printed_recipe_is_a_file_that_gives_it_back(tmp_path, capsys):
    assert cli.main(["recipes", "paper_math"]) == 0
    (tmp_path / "paper.yaml").write_text(capsys.readouterr().out)
    assert configure(str(tmp_path / "paper.yaml")) == RECIPES["paper_math"]()


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
        ("- 1", "expected a table of fields"),
        ("a: [", "expected valid YAML"),
    ],
)
def test_bad_files_name_file_and_field(tmp_path, capsys, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    assert cli.main(["train", str(tmp_path / "bad.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error and "bad.yaml" in error and "Traceback" not in error


def test_a_printed_configuration_of_a_model_of_ones_own_gives_it_back(tiny_model, tmp_path, capsys):
    assert cli.main(["recipes", tiny_model]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert configure(str(tmp_path / "mine.yaml")) == for_model(tiny_model)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--train.lrr", "1"], "--train.lrr"),
        (["train", "--train.lr", "fast"], "--train.lr"),
        (["train", "--sampling.group-size", "1"], "group_size"),
    ],
)
def test_bad_arguments_name_the_field(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2 and message in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "got 'fly'"),
        (["train", "nothing"], "expected a recipe (quickstart"),
        (["train", "./nowhere"], "does not exist"),
        (["train", "--resume", "/nowhere"], "without one"),
        (["train", "nothing.yaml"], "does not exist"),
        (["report", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_targets_are_one_line(argv, message, capsys):
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error:") and "Traceback" not in error


def test_help_is_quick_and_lists_fields():
    help_text = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "srt_fast.cli", "train", "--help"],
        capture_output=True,
        text=True,
    )
    assert help_text.returncode == 0 and "--train.lr" in help_text.stdout
    assert "| torch\n" not in help_text.stderr  # torch and transformers take seconds to import


def test_train_eval_and_report_from_the_command_line(tiny_config, tmp_path, capsys):
    """What a user types, on the tiny model: the last line of standard output is the JSON document."""
    folder, file = tmp_path / "run", tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(to_dict(override(tiny_config, {"train.steps": 2}))))
    assert cli.main(["train", str(file)]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["run_dir"] == str(folder) and summary["steps"] == 2
    assert cli.main(["eval", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pass1"] == summary["pass1_end"]
    (folder / "report.html").unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").is_file()
