"""srt-fast train | eval | probe | report | export | recipes | vote | experiment | plan."""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError

from srt_fast.config import Config, override, to_dict
from srt_fast.config.arguments import configure, find_recipe, override_fields, split_arguments
from srt_fast.config.recipes import RECIPES
from srt_fast.errors import PrintableFormatter, first_line, print_text

# Modules that import torch are imported in the commands that use them. They take seconds, and
# `srt-fast --help` must not need them.
if TYPE_CHECKING:
    from srt_fast.train import Trainer

USAGE = """\
usage: srt-fast COMMAND [ARGUMENTS]

  train [RECIPE] [--FIELD VALUE ...]   Train a model on its own vote. RECIPE is the name of a recipe
                                       (default: quickstart), a YAML or TOML file, or a model: a
                                       folder, a .gguf file or a hub id.
  train --resume RUN_DIR               Continue a run that was stopped.
  eval RECIPE|MODEL|RUN_DIR            Evaluate on held-out prompts: pass@1, pass@k and maj@k.
  probe RECIPE|MODEL                   Before training: can the model train on its own vote here?
  report RUN_DIR                       Write report.html and report.png of a run again.
  export RUN_DIR|MODEL FOLDER          Write a whole model. Adapters (LoRA) are merged.
  recipes [NAME]                       List the recipes, or print one as YAML.
  vote FILE ...                        Majority, share and split of another system's completions.
  experiment collapse                  Measure how the vote rises and collapses, and what prevents
                                       the collapse (docs/rewards.md).
  plan --model MODEL --gpus N          Calculate memory and seconds of a run on many GPUs.

  srt-fast train quickstart --help     List every field with its meaning and its default.
"""

REPORT_USAGE = """\
usage: srt-fast report RUN_DIR

Write report.html and report.png of a run from its metrics."""

RECIPES_USAGE = """\
usage: srt-fast recipes [NAME]

List the recipes, or print one as YAML. The output is a file for srt-fast train."""

WITHOUT_REWARD = {"reward.kind": "majority", "reward.params": {}}
"""For `srt-fast eval`, which needs no reward: this kind fits every model and every task. Only
reward functions of episodes are kept: their later turns are evaluated."""


def main(argv: list[str] | None = None) -> int:
    """The command line.

    Returns the exit code: 0, 1 (failed), 2 (bad input), or 128 + signal (interrupted and saved).
    """
    if argv is None:
        argv = sys.argv[1:]
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "eval": _eval,
        "probe": _probe,
        "report": _report,
        "export": _export,
        "recipes": _recipes,
        "vote": _vote,
        "experiment": _experiment,
        "plan": _plan,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if argv else 2
    if argv[0] not in commands:
        names = ", ".join(commands)
        return _fail_with(
            f"expected one of the commands {names}, got {argv[0]!r}; see srt-fast --help"
        )
    if logging.lastResort:  # prints what our loggers have to say
        logging.lastResort.setFormatter(PrintableFormatter())
    try:
        _check_characters(argv)
        return commands[argv[0]](argv[1:])
    except ValueError as error:
        return _fail(error)
    except BrokenPipeError:  # srt-fast ... | head
        # Python would complain when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError, RuntimeError, SafetensorError) as error:
        if message := _explain(error):
            return _fail(error, message, code=1)
        raise


def _train(argv: list[str]) -> int:
    arguments = split_arguments(argv)
    if arguments.resume is None:
        config = configure(arguments, "train")
    else:
        from srt_fast.run.folder import load_config

        config = load_config(arguments.resume)
        command = f"train --resume {arguments.resume}"
        config = override_fields(config, arguments.overrides, command)
    from srt_fast.distributed.world import WorldError
    from srt_fast.errors import CheckpointError
    from srt_fast.run.interrupts import RunInterrupted
    from srt_fast.sampling import SamplerError
    from srt_fast.train import Trainer

    trainer = Trainer(config, resume=arguments.resume)
    try:
        summary = trainer.train()
    except RunInterrupted as interrupt:
        if trainer.world.is_main:
            print_text(f"Stopped by {interrupt}. {trainer.run.where_saved()}")
        return 128 + interrupt.signal
    except (CheckpointError, SamplerError, WorldError) as error:
        return _fail(error, f"{error}. {trainer.run.where_saved()}", code=1)
    except (OSError, MemoryError, RuntimeError) as error:
        if message := _explain(error):
            has_begun = (trainer.run.folder / "config.json").exists()
            hint = f". {trainer.run.where_saved()}" if has_begun else ""
            return _fail(error, message + hint, code=1)
        raise
    if trainer.world.is_main:
        _print_results(trainer, summary)
    return 0


def _print_results(trainer: Trainer, summary: dict[str, Any]) -> None:
    """A table of the evaluations, the paths of the results, and the summary as one JSON line."""
    from srt_fast.run.progress import summary_table

    labels = "gold answers used" if trainer.uses_gold else "no label used"
    title = f"{summary['recipe']}: {summary['steps']} steps, {summary['seconds']:.0f} s, {labels}"
    start = trainer.run.evaluations["start"]
    end = trainer.run.evaluations["end"]
    rows = [(name, start[name], end[name]) for name in start if _is_in_summary(name)]
    summary_table(title, rows)
    for name in ("model", "metrics.jsonl", "report.html", "report.png"):
        print_text(f"{name:14} {Path(summary['run_dir']) / name}")
    print(json.dumps(summary))


def _is_in_summary(metric: str) -> bool:
    is_setting = metric in ("step", "prompts", "k", "pass1_se")
    return not is_setting and not metric.startswith(("coverage@", "maj@"))


def _eval(argv: list[str]) -> int:
    run_dir = _find_run_dir(argv)
    if run_dir:
        from srt_fast.run.folder import load_config

        config = override(load_config(run_dir), {"model.path": str(run_dir / "model")})
        if not _has_turns(config):
            config = override(config, WITHOUT_REWARD)
        config = override_fields(config, argv[1:], f"eval {run_dir}")
    else:
        arguments = split_arguments(argv)
        if arguments.resume is not None:
            raise ValueError("--resume: expected with srt-fast train only, got it with eval")
        config = configure(arguments, "eval", WITHOUT_REWARD)
    from srt_fast.sampling import SamplerError, choose_engine
    from srt_fast.train import evaluate_model

    config = choose_engine(config)
    log_folder = None
    if config.sampling.engine == "vllm" and config.vllm.mode == "colocate":
        log_folder = _log_folder(run_dir)
        print_text(f"sampling with vLLM, whose log is {log_folder / 'vllm.log'}", sys.stderr)
    try:
        scores = evaluate_model(config, folder=log_folder)
    except SamplerError as error:
        return _fail(error, code=1)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"model": config.model.path, **scores}))
    return 0


def _has_turns(config: Config) -> bool:
    """Whether the reward function takes episodes, whose later turns are evaluated too."""
    from srt_fast.rewards import make_reward_function
    from srt_fast.rewards.turns import turns_of

    return bool(turns_of(make_reward_function(config.reward.kind, config.reward.params)))


def _find_run_dir(argv: list[str]) -> Path | None:
    """The first argument, if it is a run's folder."""
    if not argv or argv[0].startswith("-"):
        return None
    folder = Path(argv[0])
    has_run = all((folder / name).is_file() for name in ("config.json", "metrics.jsonl"))
    return folder if has_run else None


def _log_folder(run_dir: Path | None) -> Path:
    """Where vLLM's log of an evaluation goes: the run's folder, else a new temporary folder.

    The temporary one also serves for a run's folder that cannot be written, such as another user's.
    """
    if run_dir and os.access(run_dir, os.W_OK):
        return run_dir
    return Path(tempfile.mkdtemp(prefix="srt-fast-eval-"))


def _probe(argv: list[str]) -> int:
    from srt_fast.probe.command import main as run_probe

    return run_probe(argv)


def _report(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print(REPORT_USAGE)
        return 0 if argv in (["-h"], ["--help"]) else 2
    from srt_fast.run.report import write_report

    for path in write_report(Path(argv[0])):
        print_text(path)
    return 0


def _export(argv: list[str]) -> int:
    from srt_fast.run.export import main as run_export

    return run_export(argv)


def _recipes(argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        print(RECIPES_USAGE)
    elif argv:
        config = find_recipe(argv[0])
        if argv[0] not in RECIPES:
            from srt_fast.model.loading import check_path

            check_path(config.model.path)
        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
    else:
        for name, recipe in RECIPES.items():
            description = inspect.getdoc(recipe) or ""
            print(f"{name:20} {description.splitlines()[0]}")
    return 0


def _vote(argv: list[str]) -> int:
    from srt_fast.vote.command import main as run_vote

    return run_vote(argv)


def _experiment(argv: list[str]) -> int:
    from srt_fast.experiment.command import main as run_experiment

    return run_experiment(argv)


def _plan(argv: list[str]) -> int:
    from srt_fast.distributed.plan.command import main as run_plan

    return run_plan(argv)


def _check_characters(argv: list[str]) -> None:
    """Raise ValueError for control characters. tyro and argparse would print them as they are."""
    for argument in argv:
        if any(unicodedata.category(letter) == "Cc" for letter in argument if letter not in "\n\t"):
            raise ValueError(f"expected arguments without control characters, got {argument!r}")


def _explain(error: BaseException) -> str | None:
    """What the machine lacks, in one sentence. None: something else, whose traceback is needed."""
    if isinstance(error, OSError):  # a full disk, or a folder that cannot be written
        reason = error.strerror or str(error)
        return f"{reason}: {error.filename}" if error.filename else reason
    if isinstance(error, SafetensorError):  # a full disk
        return first_line(error)
    is_torch = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    if isinstance(error, MemoryError) or is_torch:
        return f"out of memory: {first_line(error)}"
    return None


def _fail(error: Exception, message: str | None = None, code: int = 2) -> int:
    """Print an error. Returns the exit code. Rank 0 alone prints an error of all ranks."""
    rank = int(os.environ.get("RANK", "0"))
    if rank and not _is_of_this_rank(error):
        return code
    return _fail_with(message or str(error), code, f"rank {rank}: " if rank else "")


def _is_of_this_rank(error: Exception) -> bool:
    """Whether the other ranks may not have this error.

    Before the world has started, all ranks do the same with the same arguments.
    """
    from torch.distributed import is_initialized

    from srt_fast.distributed.world import ON_ALL_RANKS

    return is_initialized() and ON_ALL_RANKS not in getattr(error, "__notes__", ())


def _fail_with(message: str, code: int = 2, prefix: str = "") -> int:
    print_text(f"{prefix}error: {message.strip()}", sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
