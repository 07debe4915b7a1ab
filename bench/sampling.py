"""Tokens a second of the two samplers, seconds of a weight sync, and what a training step spends its time on.

    python bench/sampling.py --models quickstart smollm --sequences 64 512 --out bench/results/sampling_cpu.json

Both samplers hold the same weights and get the same prompts; completions end where the model ends them, at most at the
recipe's max_new_tokens. Rounds are interleaved, after one call of each that is not counted; medians. "sync" gives vLLM
every weight anew, "check" compares log-probs of a few completions, as after every step. The shares of a step are of a
run of --steps steps with either sampler, medians without its first step; "reward" is the vote with what it needs, by default
the teacher's own completions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from measure import environment
from report import save, show
from srt_fast.config import Config, override
from srt_fast.config.recipes import RECIPES
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy, quiet_transformers
from srt_fast.model.policy import Policy
from srt_fast.run.progress import RunProgress
from srt_fast.sampling import make_sampler
from srt_fast.sampling.base import SamplingParams
from srt_fast.tasks import make_task
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.train import Trainer, starting_model

ENGINES = ("hf", "vllm")
PARTS = ("sample", "reward", "train", "sync")


def prepare(name: str) -> tuple[Config, Policy]:
    """A recipe and its starting model, which is made first if need be."""
    config = RECIPES[name]()
    with RunProgress(quiet=False) as progress:
        return config, load_policy(starting_model(config, progress), config.model)


def measure_sampling(name: str, counts: list[int], rounds: int) -> tuple[list[dict], dict]:
    """Rows of tokens a second; and seconds of vLLM's start, sync and check."""
    config, policy = prepare(name)
    config = override(config, {"sampling.max_sequences": max(counts)})
    sampling, task = config.sampling, make_task(config)
    prompts = [
        tokenize_prompt(p, config.task, policy.tokenizer)
        for p in task.held_out(max(counts) // sampling.group_size)
    ]
    samplers, rows = {}, []
    for engine in ENGINES:
        started = time.perf_counter()
        samplers[engine] = make_sampler(
            override(config, {"sampling.engine": engine}), policy, folder=None
        )
    engine_costs = {"start": time.perf_counter() - started}
    with closing(samplers["vllm"]) as vllm:
        syncs, checks = [], []
        for _ in range(rounds + 1):
            syncs.append(_seconds(lambda: vllm.sync(policy))[0])
            checks.append(_seconds(lambda: vllm.check(policy, prompts))[0])
        engine_costs |= {
            "sync": statistics.median(syncs[1:]),
            "check": statistics.median(checks[1:]),
        }
        for count in counts:
            some, each = prompts[: count // sampling.group_size], {engine: [] for engine in ENGINES}
            for number in range(rounds + 1):
                for engine in ENGINES:
                    torch.manual_seed(number)
                    seconds, rollouts = _seconds(
                        lambda engine=engine, some=some: samplers[engine].sample(
                            some, SamplingParams.of_training(sampling)
                        )
                    )
                    each[engine].append((seconds, len(rollouts.tokens)))
            pace = {
                engine: statistics.median(tokens / seconds for seconds, tokens in each[engine][1:])
                for engine in ENGINES
            }
            rows += [
                {
                    "model": name,
                    "sequences": count,
                    "sampler": engine,
                    "tokens_per_second": pace[engine],
                    "times_hf": pace[engine] / pace["hf"],
                    "tokens": each[engine][-1][1],
                    "seconds_each": [round(seconds, 4) for seconds, _ in each[engine][1:]],
                }
                for engine in ENGINES
            ]
    return rows, {"model": name, **engine_costs}


def _seconds(call) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def measure_steps(name: str, steps: int) -> list[dict]:
    """One row a sampler: median seconds of a step and of its parts."""
    rows = []
    for engine in ENGINES:
        with tempfile.TemporaryDirectory() as folder:
            config = override(
                RECIPES[name](),
                {
                    "run_dir": folder,
                    "sampling.engine": engine,
                    "train.steps": steps,
                    "checkpoint.every": 0,
                    "log.tensorboard": False,
                    "evaluation": {"every": 0, "prompts": 8, "samples": 2},
                },
            )
            Trainer(config, quiet=True).train()
            trained = [
                row for row in read_rows(Path(folder) / "metrics.jsonl") if row["kind"] == "train"
            ][1:]
        parts = {
            part: statistics.median(row[f"seconds_{part}"] for row in trained) for part in PARTS
        }
        gaps = [row["check_mismatch_max"] for row in trained if "check_mismatch_max" in row]
        rows.append(
            {
                "model": name,
                "sampler": engine,
                "seconds": statistics.median(row["seconds"] for row in trained),
                **parts,
                "largest_gap": max(gaps, default=None),
                "steps": steps,
            }
        )
    return rows


def tables(document: dict) -> list[tuple]:
    pace = [
        [
            row["model"],
            str(row["sequences"]),
            row["sampler"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['times_hf']:.2f}",
        ]
        for row in document["sampling"]
    ]
    cost = [
        [row["model"], *(f"{row[name]:.3g}" for name in ("start", "sync", "check"))]
        for row in document["engine"]
    ]
    step = [
        [
            row["model"],
            row["sampler"],
            f"{row['seconds']:.3g}",
            *(f"{row[part]:.3g} ({100 * row[part] / row['seconds']:.0f} %)" for part in PARTS),
            "" if row["largest_gap"] is None else f"{row['largest_gap']:.1e}",
        ]
        for row in document["steps"]
    ]
    return [
        ("Sampling", ["model", "sequences", "sampler", "tokens/s", "times hf"], pace),
        ("vLLM, seconds", ["model", "start and first sync", "sync", "check"], cost),
        (
            "A step, seconds",
            [
                "model",
                "sampler",
                "step",
                "sampling",
                "reward",
                "training",
                "sync and check",
                "largest gap, nats",
            ],
            step,
        ),
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=("quickstart", "smollm"), default=["quickstart", "smollm"])
    add("--sequences", type=int, nargs="+", default=[64, 512])
    add("--rounds", type=int, default=3)
    add("--steps", type=int, default=6, help="of the runs that the shares are taken from; 0: none")
    add("--out", type=Path, metavar="FILE.json", help="and a table beside it")
    options = parser.parse_args()
    if wrong := [count for count in options.sequences if count < 16 or count % 16]:
        parser.error(f"--sequences: expected multiples of 16, got {wrong}")
    if options.steps == 1 or options.steps < 0:
        parser.error(
            f"--steps: expected 0, or at least 2 (the first is left out), got {options.steps}"
        )
    return options


def main(options: argparse.Namespace) -> None:
    quiet_transformers()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    document: dict[str, Any] = {
        "how": __doc__,
        "environment": environment(device),
        "sampling": [],
        "engine": [],
        "steps": [],
    }
    for name in options.models:
        rows, costs = measure_sampling(name, options.sequences, options.rounds)
        document["sampling"] += rows
        document["engine"].append(costs)
        if options.steps:
            document["steps"] += measure_steps(name, options.steps)
    for table in tables(document):
        show(*table)
    if options.out:
        save(
            options.out,
            document,
            tables(document),
            document["how"].partition("\n\n")[2].partition("\n\n")[2],
        )
    print(json.dumps(document))


if __name__ == "__main__":
    main(parse())
