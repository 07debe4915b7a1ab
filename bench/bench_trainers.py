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
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import environment
from report import save, show
from srt_fast.config import Config, override
from srt_fast.config.recipes import quickstart
from srt_fast.model.loading import quiet_transformers
from srt_fast.run.progress import RunProgress
from srt_fast.train import starting_model
from trainers.larger_model import larger
from trainers.runs import CPU, run_alone

# The results call a trainer with its settings a "way".
WAYS = {
    "trl": "TRL",
    "trl_patched": "TRL, SRTGRPOTrainer",
    "srt_fast": "srt-fast",
    "srt_fast_vllm": "srt-fast with vLLM",
}


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
