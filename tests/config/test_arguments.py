"""A recipe, a file and the command line's fields make one configuration."""

import pytest

from srt_fast import cli
from srt_fast.config import Config
from srt_fast.config.arguments import configure, split_arguments
from srt_fast.config.recipes import RECIPES, for_model


def parse(*argv: str) -> Config:
    return configure(split_arguments(list(argv)), "train")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "run.yaml",
            "recipe: quickstart\ntrain: {lr: 0.5, steps: 7}\ntask: {params: {max_digits: 2}}\n",
        ),
        ("run.toml", "[train]\nlr = 0.5\nsteps = 7\n[task.params]\nmax_digits = 2\n"),
    ],
)
def test_the_command_line_overrides_a_file_and_the_file_a_recipe(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    fields = ("--train.steps", "9", "--train.objective-overrides", "clip_high=0.28")
    for argv in ((str(file),), ("quickstart", "--config", str(file))):
        config = parse(*argv, *fields)
        assert config.recipe == "quickstart"
        assert config.train.lr == 0.5
        assert config.train.steps == 9
        assert config.task.params == {"max_digits": 2}
        assert config.objective().clip_high == 0.28


def test_the_default_recipe_is_quickstart():
    assert (
        parse() == parse("quickstart") == parse("--recipe", "quickstart") == RECIPES["quickstart"]()
    )


def test_a_printed_recipe_is_a_file_of_that_recipe(tmp_path, capsys):
    assert cli.main(["recipes", "paper_math"]) == 0
    (tmp_path / "paper.yaml").write_text(capsys.readouterr().out)
    assert parse(str(tmp_path / "paper.yaml")) == RECIPES["paper_math"]()


def test_a_printed_model_is_a_file_of_that_model(tiny_model, tmp_path, capsys):
    assert cli.main(["recipes", tiny_model]) == 0
    (tmp_path / "model.yaml").write_text(capsys.readouterr().out)
    assert parse(str(tmp_path / "model.yaml")) == for_model(tiny_model)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["quickstart", "--recipe", "ttrl"], "expected one recipe, got 'quickstart' and --recipe"),
        (["quickstart", "--resume", "runs/a"], "--resume: expected a run folder alone"),
        (["--config", "a.yaml", "--resume", "runs/a"], "--resume: expected a run folder alone"),
    ],
)
def test_arguments_that_do_not_fit_together(argv, message):
    with pytest.raises(ValueError, match=message):
        split_arguments(argv)


def test_evaluation_needs_no_reward():
    """A bfloat16 model has no moving-average teacher, and evaluation does not need one."""
    arguments = split_arguments(["--model.dtype", "bfloat16"])
    config = configure(arguments, "eval", cli.WITHOUT_REWARD)
    assert config.model.dtype == "bfloat16"
