"""Steps a second and peak memory of TRL as it comes, TRL with our loss, and `srt-fast train`; and the accuracy they end with.

    python bench/bench_trainers.py --out bench/results/trainers_cpu.json

Model, prompts and their order, group size, lengths, reward (the group's vote), loss and optimizer are the same; nothing
is evaluated or saved on the way. Each run is a process of its own, and runs of the ways take turns. A step lasts from the
end of the one before to its own end (the first is left out), sampling included; medians over all steps of all rounds.
Memory is the high-water mark of a whole run above what its imports took. Accuracy is pass@1 of the same held-out prompts
and samples for every way.
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

WAYS = {
    "trl": "TRL",
    "trl_patched": "TRL, SRTGRPOTrainer",
    "srt_fast": "srt-fast",
    "srt_fast_vllm": "srt-fast with vLLM",
}
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained: a run's configuration, its steps, and TRL's completions in a micro-batch."""

    config: Callable[[], Config]
    steps: int
    micro_batch: int


CASES = {
    "quickstart": Case(config=quickstart, steps=40, micro_batch=256),
    "larger": Case(config=larger, steps=4, micro_batch=16),
}


def prepare(case: Case) -> Config:
    """The configuration of a run, with the path of a model that exists."""
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


def run(way: str, config: Config, micro_batch: int) -> dict[str, Any]:
    """Seconds of each step but the first, of sampling in it, peak bytes, the part of unanimous groups, pass@1."""
    quiet_transformers()
    with tempfile.TemporaryDirectory() as folder:
        if way.startswith("trl"):
            from srt_fast.integrations import trl  # its imports are not the run's memory

            work = partial(run_trl, trl, way, config, micro_batch, folder)
        else:
            work = partial(run_ours, way, config, folder)
        found, seconds, peak = measure(work, CPU)
        found |= {"way": way, "seed": config.train.seed, "run_seconds": seconds, "peak_bytes": peak}
        return found | (
            {"pass1": _accuracy(config, f"{folder}/model")}
            if config.task.kind == "arithmetic"
            else {}
        )


def run_trl(integration, way: str, config: Config, micro_batch: int, folder: str) -> dict[str, Any]:
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

    class Clock(TrainerCallback):
        ends = []

        def on_step_end(self, *_, **__):
            self.ends.append(time.perf_counter())

    train, sampling = config.train, config.sampling
    problems = PromptStream(make_task(config), train.seed).next(
        train.steps * train.prompts_per_step
    )
    args = trl.GRPOConfig(
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
        gradient_accumulation_steps=train.prompts_per_step * sampling.group_size // micro_batch,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    kind = trl.GRPOTrainer if way == "trl" else integration.SRTGRPOTrainer
    trainer = kind(
        config.model.path,
        integration.majority_reward(config.task.answer_rule),
        args,
        train_dataset=Dataset.from_dict({"prompt": [problem.prompt for problem in problems]}),
        processing_class=AutoTokenizer.from_pretrained(config.model.path),
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    generate, sampled = trainer._generate, []

    def timed(prompts):
        started = time.perf_counter()
        result = generate(prompts)
        sampled.append(time.perf_counter() - started)
        return result

    trainer._generate = timed
    trainer.train()
    trainer.save_model(f"{folder}/model")
    log = [row for row in trainer.state.log_history if "reward" in row][1:]
    return {
        "seconds": [end - start for start, end in zip(Clock.ends, Clock.ends[1:], strict=False)],
        "sampling": sampled[1:],
        "unanimous": statistics.mean(row["frac_reward_zero_std"] for row in log),
        "tokens": statistics.mean(row["completions/mean_length"] for row in log),
        "longest": statistics.mean(row["completions/max_length"] for row in log),
    }


def run_ours(way: str, config: Config, folder: str) -> dict[str, Any]:
    engine = "vllm" if way == "srt_fast_vllm" else "hf"
    few = {"prompts": 8, "samples": 2}  # it evaluates at start and end, which no step counts
    Trainer(
        override(config, {"run_dir": folder, "sampling.engine": engine, "evaluation": few}),
        quiet=True,
    ).train()
    rows = [row for row in read_rows(Path(folder) / "metrics.jsonl") if row["kind"] == "train"][1:]
    return {
        "seconds": [row["seconds"] for row in rows],
        "sampling": [row["seconds_sample"] for row in rows],
        "unanimous": statistics.mean(row["unanimous"] for row in rows),
        "tokens": statistics.mean(row["completion_tokens"] for row in rows),
    }


def _accuracy(config: Config, model: str) -> float:
    return evaluate_model(
        override(config, {"model.path": model, "sampling.engine": "hf"}), quiet=True
    )["pass1"]


# ---- all of them ----


def summarise(rows: list[dict], name: str) -> list[dict[str, Any]]:
    """One row a way. Ratios are of medians; `accuracies` has one figure a round."""
    found = []
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        step, sampling = (
            statistics.median([s for row in own for s in row[key]])
            for key in ("seconds", "sampling")
        )
        peaks = [row["peak_bytes"] for row in own if row["peak_bytes"] is not None]
        found.append(
            {
                "model": name,
                "way": way,
                "steps_per_second": 1 / step,
                "seconds_a_step": step,
                "seconds_sampling": sampling,
                "peak_bytes": max(peaks, default=None),
                "unanimous": statistics.mean(row["unanimous"] for row in own),
                "tokens": statistics.mean(row["tokens"] for row in own),
                "accuracies": [row["pass1"] for row in own if "pass1" in row],
            }
        )
    plain = next((row for row in found if row["way"] == "trl"), None)
    for row in found:
        row["times_trl"] = plain and plain["seconds_a_step"] / row["seconds_a_step"]
        row["times_trl_without_sampling"] = plain and _rest(plain) / _rest(row)
    return found


def _rest(row: dict) -> float:
    return row["seconds_a_step"] - row["seconds_sampling"]


def table(name: str, rows: list[dict]) -> tuple:
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
    return name, columns, lines


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _defaults(field: str) -> str:
    return ", ".join(f"{name} {getattr(case, field)}" for name, case in CASES.items())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=tuple(CASES), default=list(CASES))
    add(
        "--ways",
        nargs="+",
        choices=tuple(WAYS),
        default=[way for way in WAYS if way != "srt_fast_vllm" or find_spec("vllm")],
    )
    add("--rounds", type=int, default=3, help="runs of each way; seeds 0, 1 ...")
    add("--steps", type=int, help=f"of a run (default: {_defaults('steps')})")
    add(
        "--micro-batch",
        type=int,
        help=f"TRL's per_device_train_batch_size (default: {_defaults('micro_batch')})",
    )
    add("--out", type=Path, metavar="FILE.json", help="and a table beside it")
    options = parser.parse_args()
    if options.steps is not None and options.steps < 2:
        parser.error(f"--steps: expected at least 2 (the first is left out), got {options.steps}")
    return options


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
        config, rows = prepare(case), []
        for seed in range(options.rounds):
            for way in options.ways:
                rows.append(_alone(way, override(config, {"train.seed": seed}), case.micro_batch))
                print(
                    f"{name}, seed {seed}, {way}: {statistics.median(rows[-1]['seconds']):.3g} s a step",
                    file=sys.stderr,
                )
        document["runs"] += [{"model": name, **row} for row in rows]
        document["summary"] += summarise(rows, name)
        tables.append(
            table(f"{name}: {describe(config, case)}", document["summary"][-len(options.ways) :])
        )
        show(*tables[-1])
        if options.out:
            save(
                options.out,
                document,
                tables,
                document["how"].partition("\n\n")[2].partition("\n\n")[2],
            )
    print(json.dumps(document))


def describe(config: Config, case: Case) -> str:
    train, sampling = config.train, config.sampling
    return (
        f"{train.prompts_per_step} prompts x {sampling.group_size} samples of at most {sampling.max_new_tokens} tokens, "
        f"{train.steps} steps, TRL's micro-batches of {case.micro_batch}"
    )


def _alone(way: str, config: Config, micro_batch: int) -> dict[str, Any]:
    """In a fresh process, so that memory is the run's own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, way, config, micro_batch).result()


if __name__ == "__main__":
    main(parse())
