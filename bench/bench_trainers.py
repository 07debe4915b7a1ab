"""Compares trainers: TRL, TRL with our loss, and srt-fast, in speed, memory and accuracy.

    python bench/bench_trainers.py --out bench/results/trainers_cpu.json

Model, prompts and their order, group size, lengths, reward (the group's vote), loss and optimizer
are the same. Nothing is evaluated or saved during training. Each run is a process of its own, and
the trainers take turns. A step lasts from the end of the one before to its own end, sampling
included. The first step is left out. Times are medians over all steps of all rounds. Memory is the
peak of a whole run above what its imports took. Accuracy is pass@1 of the same held-out prompts and
samples for every trainer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from larger_model import larger
from measure import environment, measure
from report import save, show
from srt_fast.config import Config, override
from srt_fast.config.recipes import quickstart
from srt_fast.files import read_rows
from srt_fast.model.loading import quiet_transformers
from srt_fast.run.progress import RunProgress
from srt_fast.tasks import make_task
from srt_fast.tasks.stream import PromptStream
from srt_fast.train import Trainer, evaluate_model, starting_model

# The results call a trainer with its settings a "way".
WAYS = {
    "trl": "TRL",
    "trl_patched": "TRL, SRTGRPOTrainer",
    "srt_fast": "srt-fast",
    "srt_fast_vllm": "srt-fast with vLLM",
}
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained."""

    config: Callable[[], Config]
    steps: int
    micro_batch: int  # completions in a micro-batch of TRL


CASES = {
    "quickstart": Case(config=quickstart, steps=40, micro_batch=256),
    "larger": Case(config=larger, steps=4, micro_batch=16),
}


def prepare(case: Case) -> Config:
    """The configuration of a run. Makes its model if there is none yet."""
    config = override(
        case.config(),
        {
            "train.steps": case.steps,
            "reward.kind": "majority",
            "checkpoint.every": 0,
            "evaluation.every": 0,
            "monitor.every": 0,
            "log": {"tensorboard": False, "sample_every": 0},
        },
    )
    with RunProgress(quiet=False) as progress:
        return override(config, {"model.path": starting_model(config, progress)})


# ---- one run, in a process of its own ----


def run_alone(way: str, config: Config, micro_batch: int) -> dict[str, Any]:
    """`run` in a fresh process, so that the memory is the run's own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, way, config, micro_batch).result()


def run(way: str, config: Config, micro_batch: int) -> dict[str, Any]:
    """Train, and return the run's figures.

    seconds and sampling: of each step but the first. tokens: mean length of a completion.
    unanimous: fraction of the groups. peak_bytes. pass1 for arithmetic, whose gold is known.
    """
    quiet_transformers()
    with tempfile.TemporaryDirectory() as folder:
        if way.startswith("trl"):
            # Imported before the measurement: the imports are not the run's memory.
            from srt_fast.integrations import trl as integration

            train = partial(run_trl, integration, way, config, micro_batch, folder)
        else:
            train = partial(run_srt_fast, way, config, folder)
        figures, seconds, peak_bytes = measure(train, CPU)
        figures |= {"way": way, "seed": config.train.seed}
        figures |= {"run_seconds": seconds, "peak_bytes": peak_bytes}
        if config.task.kind == "arithmetic":
            figures["pass1"] = _accuracy(config, f"{folder}/model")
        return figures


def run_trl(
    integration: Any, way: str, config: Config, micro_batch: int, folder: str
) -> dict[str, Any]:
    """Train with TRL. integration: the module srt_fast.integrations.trl."""
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback

    clock = _make_clock()
    train = config.train
    stream = PromptStream(make_task(config), train.seed)
    problems = stream.next(train.steps * train.prompts_per_step)
    trainer_class = trl.GRPOTrainer if way == "trl" else integration.SRTGRPOTrainer
    trainer = trainer_class(
        config.model.path,
        integration.majority_reward(config.task.answer_rule),
        _trl_config(config, micro_batch, folder),
        train_dataset=Dataset.from_dict({"prompt": [problem.prompt for problem in problems]}),
        processing_class=AutoTokenizer.from_pretrained(config.model.path),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    sampling_seconds = _time_calls(trainer, "_generate")
    trainer.train()
    trainer.save_model(f"{folder}/model")
    log = [row for row in trainer.state.log_history if "reward" in row][1:]
    return {
        "seconds": [
            end - start for start, end in zip(clock.ends[:-1], clock.ends[1:], strict=True)
        ],
        "sampling": sampling_seconds[1:],
        "unanimous": statistics.mean(row["frac_reward_zero_std"] for row in log),
        "tokens": statistics.mean(row["completions/mean_length"] for row in log),
        "longest": statistics.mean(row["completions/max_length"] for row in log),
    }


def _make_clock() -> Any:
    """A callback whose `ends` has the time at which each step ended."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *arguments: Any, **settings: Any) -> None:
            self.ends.append(time.perf_counter())

    return Clock()


def _time_calls(trainer: Any, name: str) -> list[float]:
    """Replace a method by one that adds the seconds of each call to the list returned here."""
    method = getattr(trainer, name)
    seconds: list[float] = []

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = method(*arguments)
        seconds.append(time.perf_counter() - start)
        return result

    setattr(trainer, name, timed)
    return seconds


def _trl_config(config: Config, micro_batch: int, folder: str) -> Any:
    """The run's settings in TRL's words."""
    import trl

    train = config.train
    sampling = config.sampling
    completions_per_step = train.prompts_per_step * sampling.group_size
    return trl.GRPOConfig(
        output_dir=folder,
        max_steps=train.steps,
        seed=train.seed,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        learning_rate=train.lr,
        lr_scheduler_type="constant",
        weight_decay=train.weight_decay,
        adam_beta2=train.betas[1],
        max_grad_norm=train.grad_clip,
        loss_type="grpo",
        num_generations=sampling.group_size,
        temperature=sampling.temperature,
        max_completion_length=sampling.max_new_tokens,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=completions_per_step // micro_batch,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def run_srt_fast(way: str, config: Config, folder: str) -> dict[str, Any]:
    """Train with srt-fast."""
    changes = {
        "run_dir": folder,
        "sampling.engine": "vllm" if way == "srt_fast_vllm" else "hf",
        # A run evaluates at its start and end. No step counts that.
        "evaluation": {"prompts": 8, "samples": 2},
    }
    Trainer(override(config, changes), quiet=True).train()
    rows = [row for row in read_rows(Path(folder) / "metrics.jsonl") if row["kind"] == "train"][1:]
    return {
        "seconds": [row["seconds"] for row in rows],
        "sampling": [row["seconds_sample"] for row in rows],
        "unanimous": statistics.mean(row["unanimous"] for row in rows),
        "tokens": statistics.mean(row["completion_tokens"] for row in rows),
    }


def _accuracy(config: Config, model: str) -> float:
    config = override(config, {"model.path": model, "sampling.engine": "hf"})
    return evaluate_model(config, quiet=True)["pass1"]


# ---- all runs ----


def summarise(runs: list[dict[str, Any]], case_name: str) -> list[dict[str, Any]]:
    """One row per trainer. Ratios are of medians. `accuracies` has one figure per round."""
    rows = []
    for way in dict.fromkeys(run["way"] for run in runs):
        way_runs = [run for run in runs if run["way"] == way]
        peaks = [run["peak_bytes"] for run in way_runs if run["peak_bytes"] is not None]
        step_seconds = _median_over_steps(way_runs, "seconds")
        rows.append(
            {
                "model": case_name,
                "way": way,
                "steps_per_second": 1 / step_seconds,
                "seconds_a_step": step_seconds,
                "seconds_sampling": _median_over_steps(way_runs, "sampling"),
                "peak_bytes": max(peaks, default=None),
                "unanimous": statistics.mean(run["unanimous"] for run in way_runs),
                "tokens": statistics.mean(run["tokens"] for run in way_runs),
                "accuracies": [run["pass1"] for run in way_runs if "pass1" in run],
            }
        )
    trl_row = next((row for row in rows if row["way"] == "trl"), None)
    for row in rows:
        row["times_trl"] = None
        row["times_trl_without_sampling"] = None
        if trl_row:
            row["times_trl"] = trl_row["seconds_a_step"] / row["seconds_a_step"]
            row["times_trl_without_sampling"] = _training_seconds(trl_row) / _training_seconds(row)
    return rows


def _median_over_steps(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(seconds for run in runs for seconds in run[name])


def _training_seconds(row: dict[str, Any]) -> float:
    return row["seconds_a_step"] - row["seconds_sampling"]


def table(title: str, rows: list[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and lines."""
    columns = [
        "trainer",
        "steps/s",
        "times TRL",
        "s a step",
        "of it sampling",
        "times TRL, the rest",
        "peak MiB",
        "unanimous",
        "tokens, mean",
        "pass@1 at the end",
    ]
    lines = [
        [
            WAYS[row["way"]],
            f"{row['steps_per_second']:.3g}",
            _times(row["times_trl"]),
            f"{row['seconds_a_step']:.3g}",
            f"{row['seconds_sampling']:.3g}",
            _times(row["times_trl_without_sampling"]),
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{100 * row['unanimous']:.0f} %",
            f"{row['tokens']:.1f}",
            ", ".join(f"{value:.3f}" for value in row["accuracies"]),
        ]
        for row in rows
    ]
    return title, columns, lines


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def describe(config: Config, case: Case) -> str:
    train = config.train
    sampling = config.sampling
    return (
        f"{train.prompts_per_step} prompts x {sampling.group_size} samples of at most "
        f"{sampling.max_new_tokens} tokens, {train.steps} steps, "
        f"TRL's micro-batches of {case.micro_batch}"
    )


# ---- the command ----


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=tuple(CASES), default=list(CASES))
    default_ways = [way for way in WAYS if way != "srt_fast_vllm" or find_spec("vllm")]
    add("--ways", nargs="+", choices=tuple(WAYS), default=default_ways)
    add("--rounds", type=int, default=3, help="runs of each trainer; seeds 0, 1 ...")
    add("--steps", type=int, help=f"of a run (default: {_defaults('steps')})")
    add(
        "--micro-batch",
        type=int,
        help=f"TRL's per_device_train_batch_size (default: {_defaults('micro_batch')})",
    )
    add("--out", type=Path, metavar="FILE.json", help="write the document, and a table beside it")
    options = parser.parse_args()
    if options.steps is not None and options.steps < 2:
        parser.error(f"--steps: expected at least 2 (the first is left out), got {options.steps}")
    return options


def _defaults(field: str) -> str:
    return ", ".join(f"{name} {getattr(case, field)}" for name, case in CASES.items())


def main(options: argparse.Namespace) -> None:
    quiet_transformers()
    document: dict[str, Any] = {
        "how": __doc__,
        "environment": environment(CPU),
        "runs": [],
        "summary": [],
    }
    tables = []
    for name in options.models:
        case = CASES[name]
        case = replace(
            case,
            steps=options.steps or case.steps,
            micro_batch=options.micro_batch or case.micro_batch,
        )
        config = prepare(case)
        runs = run_rounds(name, config, case, options)
        rows = summarise(runs, name)
        document["runs"] += [{"model": name, **run} for run in runs]
        document["summary"] += rows
        tables.append(table(f"{name}: {describe(config, case)}", rows))
        show(*tables[-1])
        if options.out:
            _, _, how = document["how"].split("\n\n", 2)  # without title and command
            save(options.out, document, tables, how)
    print(json.dumps(document))


def run_rounds(
    name: str, config: Config, case: Case, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The runs of one case. The trainers take turns."""
    runs = []
    for seed in range(options.rounds):
        for way in options.ways:
            seeded = override(config, {"train.seed": seed})
            runs.append(run_alone(way, seeded, case.micro_batch))
            seconds = statistics.median(runs[-1]["seconds"])
            print(f"{name}, seed {seed}, {way}: {seconds:.3g} s a step", file=sys.stderr)
    return runs


if __name__ == "__main__":
    main(parse())
