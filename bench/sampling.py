"""Tokens a second of the two samplers, seconds of a weight sync, and the parts of a training step.

    python bench/sampling.py --sequences 64 512 --out bench/results/sampling_cpu.json

All samplers hold the same weights and get the same prompts. The model ends completions, at most
after the recipe's max_new_tokens. Rounds are interleaved, after one call of each that is not
counted. Figures are medians. "sync" gives vLLM every weight anew. "check" compares log-probs of a
few completions, as after every step. The shares of a step come from a run of --steps steps with
each sampler, without its first step. "sampling" includes a teacher's completions, which the recipes
have by default. "reward" is the vote with what it needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from measure import environment
from report import save, show
from srt_fast.config import Config, override
from srt_fast.config.recipes import RECIPES
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy, quiet_transformers
from srt_fast.model.policy import Policy
from srt_fast.run.progress import RunProgress
from srt_fast.sampling import Sampler, make_sampler
from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.prompts import fitting_prompts
from srt_fast.tasks import make_task
from srt_fast.train import Trainer, starting_model

ENGINES = ("hf", "vllm")
PARTS = ("sample", "reward", "train", "sync")
STEP_COLUMNS = [
    "model",
    "sampler",
    "step",
    "sampling",
    "reward",
    "training",
    "sync and check",
    "largest gap, nats",
]

Result = TypeVar("Result")


def prepare(name: str) -> tuple[Config, Policy]:
    """A recipe and its starting model. Makes the model first if there is none."""
    config = RECIPES[name]()
    with RunProgress(quiet=False) as progress:
        return config, load_policy(starting_model(config, progress), config.model)


def measure_sampling(
    name: str, counts: list[int], rounds: int, engines: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of tokens a second, and one of the seconds of vLLM's start, sync and check, if it runs.

    engines: "hf", and maybe "vllm".
    """
    config, policy = prepare(name)
    config = override(config, {"sampling.max_sequences": max(counts)})
    group_size = config.sampling.group_size
    problems = make_task(config).held_out(max(counts) // group_size)
    _, prompts = fitting_prompts(problems, config, policy)
    samplers = {"hf": make_sampler(override(config, {"sampling.engine": "hf"}), policy)}
    costs = []
    with ExitStack() as resources:
        if "vllm" in engines:
            vllm_config = override(config, {"sampling.engine": "vllm"})
            start_seconds, vllm = _time(lambda: make_sampler(vllm_config, policy))
            samplers["vllm"] = resources.enter_context(closing(vllm))
            sync_costs = _measure_sync(vllm, policy, prompts, rounds)
            costs.append({"model": name, "start": start_seconds} | sync_costs)
        rows = []
        for count in counts:
            calls = _measure_calls(samplers, config, prompts[: count // group_size], rounds)
            rows += _sampling_rows(name, count, calls)
    return rows, costs


def _measure_sync(
    sampler: Sampler, policy: Policy, prompts: list[list[int]], rounds: int
) -> dict[str, float]:
    """Median seconds of a sync and of a check."""
    sync_seconds = []
    check_seconds = []
    for _ in range(rounds + 1):
        sync_seconds.append(_time(lambda: sampler.sync(policy))[0])
        check_seconds.append(_time(lambda: sampler.check(policy, prompts))[0])
    return {
        "sync": statistics.median(sync_seconds[1:]),
        "check": statistics.median(check_seconds[1:]),
    }


def _measure_calls(
    samplers: dict[str, Sampler], config: Config, prompts: list[list[int]], rounds: int
) -> dict[str, list[tuple[float, int]]]:
    """Seconds and tokens of each call of each sampler. The first round is not counted."""
    params = SamplingParams.of_training(config.sampling)
    calls: dict[str, list[tuple[float, int]]] = {engine: [] for engine in samplers}
    for seed in range(rounds + 1):
        for engine, sampler in samplers.items():
            torch.manual_seed(seed)
            seconds, rollouts = _time(partial(sampler.sample, prompts, params))
            calls[engine].append((seconds, len(rollouts.tokens)))
    return {engine: engine_calls[1:] for engine, engine_calls in calls.items()}


def _sampling_rows(
    name: str, count: int, calls: dict[str, list[tuple[float, int]]]
) -> list[dict[str, Any]]:
    """One row for each sampler: its pace, and how it compares with "hf"."""
    paces = {
        engine: statistics.median(tokens / seconds for seconds, tokens in engine_calls)
        for engine, engine_calls in calls.items()
    }
    rows = []
    for engine, engine_calls in calls.items():
        row = {
            "model": name,
            "sequences": count,
            "sampler": engine,
            "tokens_per_second": paces[engine],
            "times_hf": paces[engine] / paces["hf"],
            "tokens": engine_calls[-1][1],
            "seconds_each": [round(seconds, 4) for seconds, _ in engine_calls],
        }
        rows.append(row)
    return rows


def _time(call: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds and result of a call."""
    started_at = time.perf_counter()
    result = call()
    return time.perf_counter() - started_at, result


def measure_steps(name: str, steps: int, engines: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each sampler: median seconds of a step and of its parts."""
    rows = []
    for engine in engines:
        train_rows = _train(name, engine, steps)[1:]
        row = {
            "model": name,
            "sampler": engine,
            "seconds": statistics.median(step["seconds"] for step in train_rows),
        }
        for part in PARTS:
            row[part] = statistics.median(step[f"seconds_{part}"] for step in train_rows)
        checks = [step for step in train_rows if "check_mismatch_max" in step]
        row["largest_gap"] = max((step["check_mismatch_max"] for step in checks), default=None)
        row["steps"] = steps
        rows.append(row)
    return rows


def _train(name: str, engine: str, steps: int) -> list[dict[str, Any]]:
    """The metrics of each step of a run."""
    with tempfile.TemporaryDirectory() as folder:
        config = override(
            RECIPES[name](),
            {
                "run_dir": folder,
                "sampling.engine": engine,
                "train.steps": steps,
                "checkpoint.every": 0,
                "monitor.every": 0,
                "log.tensorboard": False,
                "evaluation": {"every": 0, "prompts": 8, "samples": 2},
            },
        )
        Trainer(config, quiet=True).train()
        rows = read_rows(Path(folder) / "metrics.jsonl")
    return [row for row in rows if row["kind"] == "train"]


def make_tables(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and lines of each table."""
    sampling_lines = [
        [
            row["model"],
            str(row["sequences"]),
            row["sampler"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['times_hf']:.2f}",
        ]
        for row in document["sampling"]
    ]
    engine_lines = [
        [row["model"], *(f"{row[name]:.3g}" for name in ("start", "sync", "check"))]
        for row in document["engine"]
    ]
    return [
        ("Sampling", ["model", "sequences", "sampler", "tokens/s", "times hf"], sampling_lines),
        ("vLLM, seconds", ["model", "start and first sync", "sync", "check"], engine_lines),
        ("A step, seconds", STEP_COLUMNS, [_step_line(row) for row in document["steps"]]),
    ]


def _step_line(row: dict[str, Any]) -> list[str]:
    parts = [f"{row[part]:.3g} ({100 * row[part] / row['seconds']:.0f} %)" for part in PARTS]
    mismatch = "" if row["largest_gap"] is None else f"{row['largest_gap']:.1e}"
    return [row["model"], row["sampler"], f"{row['seconds']:.3g}", *parts, mismatch]


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = ("quickstart", "smollm")
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--sequences", type=int, nargs="+", default=[64, 512])
    text = "samplers; hf is always one"
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES, help=text)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=6, help="of the runs that the shares are taken from; 0: none"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="and a table beside it")
    options = parser.parse_args(arguments)
    if "hf" not in options.engines:
        parser.error(f"--engines: expected hf among them, got {options.engines}")
    invalid = [count for count in options.sequences if count < 16 or count % 16]
    if invalid:
        parser.error(f"--sequences: expected multiples of 16, got {invalid}")
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
        rows, costs = measure_sampling(name, options.sequences, options.rounds, options.engines)
        document["sampling"] += rows
        document["engine"] += costs
        if options.steps:
            document["steps"] += measure_steps(name, options.steps, options.engines)
    tables = make_tables(document)
    for table in tables:
        show(*table)
    if options.out:
        _title, _command, note = document["how"].split("\n\n", 2)
        save(options.out, document, tables, note)
    print(json.dumps(document))


if __name__ == "__main__":
    main(parse_options())
