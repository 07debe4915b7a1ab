"""srt-fast train | eval | report | recipes | vote | experiment."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import tyro
import yaml

from srt_fast.config import Config, override, to_dict
from srt_fast.config.recipes import RECIPES, for_model

USAGE = """\
usage: srt-fast COMMAND [ARGUMENTS]

  train [RECIPE] [--FIELD VALUE ...]   self-train a model; RECIPE is a recipe's name (default: quickstart), a YAML or
                                       TOML file, or a model: a folder, a .gguf file or a hub id
  train --resume RUN_DIR               go on with a run that was stopped
  eval  RECIPE|MODEL|RUN_DIR           held-out pass@1, pass@k and maj@k, without training
  report RUN_DIR                       write report.html and report.png of a run again
  recipes [NAME]                       list the recipes, or print one as YAML to edit
  vote FILE.jsonl                      majority, share and split of saved completions of any other system
  experiment collapse                  rise and collapse of the vote, and what keeps it from collapsing (docs/reward.md)

  srt-fast train quickstart --help     lists every field with its meaning and default
"""

OPTIONS = """\
Besides the fields below: --config FILE (YAML or TOML with the same fields; `recipe: NAME` in it names the one to start from),
--resume RUN_DIR (go on with a stopped run), --recipe NAME (same as the positional).
Precedence: recipe < file < command line."""

VOTE = """\
The majority vote over saved completions of any system: no model, no tokenizer. Each line of the file is a JSON object:
  {"prompt": "1/2+1/2=", "completions": ["\\\\boxed{1}", "\\\\boxed{2}"]}    a prompt with the list of its completions, or
  {"prompt": "1/2+1/2=", "completion": "\\\\boxed{1}"}                     one completion, grouped by the prompt.
A completion is a text, an object with text, content or message.content, or a list of chat messages."""


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 1 (failed), 2 (bad input), 128 + signal (interrupted, saved)."""
    argv = sys.argv[1:] if argv is None else argv
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "eval": _eval,
        "report": _report,
        "recipes": _recipes,
        "vote": _vote,
        "experiment": _experiment,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if argv else 2
    if argv[0] not in commands:
        return _fail(
            f"expected one of the commands {', '.join(commands)}, got {argv[0]!r}; see srt-fast --help"
        )
    try:
        return commands[argv[0]](argv[1:])
    except ValueError as error:
        return _fail(str(error))
    except BrokenPipeError:  # srt-fast ... | head
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python complains when it flushes
        return 1
    except OSError as error:  # a full disk or a folder that may not be written
        return _fail(f"{error.strerror or error}: {error.filename or ''}", code=1)


def _train(argv: list[str]) -> int:
    config, resume = _configure(argv, "train")
    from srt_fast.run.checkpoint import CheckpointError
    from srt_fast.run.interrupts import RunInterrupted
    from srt_fast.run.progress import summary_table
    from srt_fast.sampling import SamplerError
    from srt_fast.train import Trainer

    trainer = Trainer(config, resume=resume)
    try:
        summary = trainer.train()
    except RunInterrupted as stop:
        print(f"Stopped by {stop}. {trainer.run.where_saved()}")
        return 128 + stop.signal
    except (CheckpointError, SamplerError) as error:
        return _fail(f"{error}. {trainer.run.where_saved()}", code=1)
    folder, evaluations = Path(summary["run_dir"]), trainer.run.evaluations
    start, end = evaluations["start"], evaluations["end"]
    summary_table(
        f"{config.recipe}: {summary['steps']} steps, {summary['seconds']:.0f} s, "
        f"{'gold answers used' if trainer.uses_gold else 'no label used'}",
        [
            (name, start[name], end[name])
            for name in start
            if name not in ("step", "prompts", "k", "pass1_se")
            and not name.startswith(("coverage@", "maj@"))
        ],
    )
    for name in ("model", "metrics.jsonl", "report.html", "report.png"):
        print(f"{name:14} {folder / name}")
    print(json.dumps(summary))
    return 0


def _eval(argv: list[str]) -> int:
    from srt_fast.run.folder import load_config

    target = Path(argv[0]) if argv and not argv[0].startswith("-") else None
    if target and (target / "config.json").is_file() and (target / "metrics.jsonl").is_file():
        config = override(load_config(target), {"model.path": str(target / "model")})
        config = _parse(argv[1:], config, f"eval {target}")
    else:
        config, _ = _configure(argv, "eval")
    from srt_fast.train import evaluate_model

    print(json.dumps({"model": config.model.path, **evaluate_model(config)}))
    return 0


def _report(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print(
            "usage: srt-fast report RUN_DIR\n\nWrite report.html and report.png of a run from its metrics."
        )
        return 0 if argv in (["-h"], ["--help"]) else 2
    from srt_fast.run.report import write_report

    for path in write_report(Path(argv[0])):
        print(path)
    return 0


def _recipes(argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        print(
            "usage: srt-fast recipes [NAME]\n\nList the recipes, or print one as YAML, to edit and give to srt-fast train."
        )
    elif argv:
        print(yaml.safe_dump(to_dict(_recipe(argv[0])), sort_keys=False), end="")
    else:
        for name, recipe in RECIPES.items():
            print(f"{name:20} {inspect.getdoc(recipe).splitlines()[0]}")
    return 0


def _experiment(argv: list[str]) -> int:
    from srt_fast.experiment.command import main as run_experiment

    return run_experiment(argv)


def _vote(argv: list[str]) -> int:
    options = _vote_options().parse_args(argv)
    if options.limit < 0:
        raise ValueError(f"--limit: expected at least 0, got {options.limit}")
    from srt_fast.vote.completions import Fields, read_groups
    from srt_fast.vote.table import vote_table
    from srt_fast.vote.vote import summary, vote, write_rows

    asked = Fields(completions=options.completions, group_by=options.group_by, gold=options.gold)
    groups, used = read_groups(options.file, asked)
    votes = vote(groups, options.rule, options.share_over)
    if options.out:
        write_rows(Path(options.out), votes)
    vote_table(votes, options.limit, summary(votes, used.gold))
    return 0


def _vote_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="srt-fast vote",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description=VOTE,
        epilog="srt-fast vote samples.jsonl --completions response --group-by prompt --gold answer --out votes.jsonl",
    )
    parser.add_argument("file", metavar="FILE.jsonl", help="- reads standard input")
    parser.add_argument(
        "--completions",
        metavar="FIELD",
        help="field with one row's completion, or with its list of them; a.b.c "
        "goes into objects (default: completions, responses, outputs, samples, ... as the first row has it)",
    )
    parser.add_argument(
        "--group-by",
        metavar="FIELD",
        help="rows with the same value here are one group (default: prompt, "
        "problem, question, ..., id, ... as the first row has it; a row with a list is a group of its own)",
    )
    parser.add_argument(
        "--gold",
        metavar="FIELD",
        help="gold answer or solution, to report accuracy (default: gold or answer, "
        "where the first row has it and a group's rows agree on it)",
    )
    parser.add_argument(
        "--rule",
        choices=("boxed", "tag", "last_number", "whole"),
        default="boxed",
        help="where a completion's final answer is (default: boxed)",
    )
    parser.add_argument(
        "--share-over",
        choices=("all", "valid"),
        default="all",
        help="share counts over all completions, or those with an answer (default: all)",
    )
    parser.add_argument(
        "--limit", type=int, default=20, metavar="N", help="groups to print (default: 20)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE.jsonl",
        help="write one JSON object per group: group, majority, share, "
        "runner_up, n, valid, split, and with gold: gold, correct, accuracy",
    )
    return parser


def _configure(argv: list[str], command: str) -> tuple[Config, str | None]:
    """The configuration that these arguments ask for, and the run folder to resume."""
    positional = argv.pop(0) if argv and not argv[0].startswith("-") else None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--recipe", "--config", *(["--resume"] if command == "train" else [])):
        parser.add_argument(option)
    known, rest = parser.parse_known_args(argv)
    resume = getattr(known, "resume", None)
    if resume is not None:
        if positional or known.recipe or known.config:
            raise ValueError(
                "--resume: expected a run folder alone (it holds its own configuration), got a recipe or file too"
            )
        from srt_fast.run.folder import load_config

        return _parse(rest, load_config(resume), f"train --resume {resume}"), resume
    named = [name for name in (positional, known.recipe) if name]
    if len(named) > 1:
        raise ValueError(f"expected one recipe, got {named[0]!r} and --recipe {named[1]!r}")
    file = known.config or (
        named[0] if named and Path(named[0]).suffix in (".yaml", ".yml", ".toml") else None
    )
    values = _read(file) if file else {}
    base = named[0] if named and named[0] != file else str(values.get("recipe", "quickstart"))
    try:
        config = override(_base_config(base, values), values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}" if file else str(error)) from None
    return _parse(rest, config, f"{command} {base}"), None


def _base_config(base: str, values: dict) -> Config:
    """What a file's values are laid over. Takes `recipe` out of them, unless it is the name of a model's own run."""
    model = values.get("model")
    if (
        base == str(values.get("recipe"))
        and base not in RECIPES
        and isinstance(model, dict)
        and "path" in model
    ):
        return for_model(str(model["path"]))  # a printed configuration of a model of one's own
    values.pop("recipe", None)
    return _recipe(base)


def _recipe(name: str) -> Config:
    """A recipe by name, or the settings for a model that is not one."""
    if name in RECIPES:
        return RECIPES[name]()
    if os.sep in name or name.endswith(".gguf") or Path(name).exists():
        from srt_fast.model.loading import check_path

        check_path(name)
        return for_model(name)
    raise ValueError(
        f"expected a recipe ({', '.join(RECIPES)}), a YAML or TOML file, a model folder, a .gguf file or a hub id "
        f"(owner/name), got {name!r}"
    )


def _read(file: str) -> dict:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"expected a YAML or TOML file, got {file!r}, which does not exist")
    try:
        values = (
            tomllib.loads(path.read_text())
            if path.suffix == ".toml"
            else yaml.safe_load(path.read_text())
        )
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file}: expected valid {'TOML' if path.suffix == '.toml' else 'YAML'}, got: {error}"
        ) from None
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{file}: expected a table of fields, got {type(values).__name__}")
    return values or {}


def _parse(argv: list[str], config: Config, prog: str) -> Config:
    return tyro.cli(
        Config,
        default=config,
        args=argv,
        prog=f"srt-fast {prog}",
        description=OPTIONS,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _fail(message: str, code: int = 2) -> int:
    print(f"error: {message.strip()}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
