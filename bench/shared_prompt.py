"""The training pass with a group's prompt computed once, and once for each completion.

    python bench/shared_prompt.py --out bench/results/shared_prompt_cpu.json

Both ways train on the same rollouts and take turns, after one pass of each that is not counted. A
pass packs, runs the model, the loss and the backward pass for all micro-batches. All rollouts have
an advantage. "tokens" are those that the model computes. Peaks are above what was in use before.
"whole step" is the median of the steps of a run with each way, sampling included, without the
first; the sampler computes a prompt once either way.

Three cases sample from their model: quickstart (sums), smollm (chat prompts), larger (30M
parameters). The others have random tokens: prompts of 120, completions of 100 to 300, 32 of each
prompt. math has the model of "larger", whose LM head is most of it, math_smollm has SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measure import environment, measure
from report import Table, save, show
from srt_fast.config import Config, override
from srt_fast.config.recipes import quickstart, smollm
from srt_fast.learner import Learner
from srt_fast.model.loading import load_policy, quiet_transformers
from srt_fast.model.policy import Policy
from srt_fast.run.progress import RunProgress
from srt_fast.sampling.base import Completion, SamplingParams, pack_completions
from srt_fast.sampling.hf import HFSampler
from srt_fast.sampling.prompts import fitting_prompts
from srt_fast.tasks import make_task
from srt_fast.train import starting_model
from srt_fast.types import Reward, Rollouts
from trainers.larger_model import larger
from trainers.runs import CPU, run_alone

WAYS = {"apart": False, "shared": True}
RANDOM_TOKENS = ("math", "math_smollm")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and what it trains on."""

    config: Config
    prompts: int
    steps: int
    """Of a run that measures whole steps. 0: none."""


def make_case(name: str) -> Case:
    """A case. Makes its model if there is none yet."""
    if name == "quickstart":
        return Case(config=quickstart(), prompts=64, steps=12)
    if name == "smollm":
        return Case(config=smollm(), prompts=8, steps=3)
    if name == "larger":
        return Case(config=larger(), prompts=8, steps=10)
    config, prompts = (larger(), 2) if name == "math" else (smollm(), 1)
    return Case(config=override(config, {"sampling.group_size": 32}), prompts=prompts, steps=0)


def make_rollouts(name: str, case: Case, policy: Policy) -> Rollouts:
    """Rollouts of the case's model, or of random tokens."""
    torch.manual_seed(0)
    sampling = case.config.sampling
    if name in RANDOM_TOKENS:
        lengths = torch.randint(100, 301, (case.prompts * sampling.group_size,)).tolist()
        prompts = torch.randint(10, 40000, (case.prompts, 120)).tolist()
        completions = [
            Completion(torch.randint(10, 40000, (length,)), torch.zeros(length), truncated=False)
            for length in lengths
        ]
        return pack_completions(completions, prompts, samples=sampling.group_size)
    problems = make_task(case.config).held_out(case.prompts)
    _, prompts = fitting_prompts(problems, case.config, policy)
    sampler = HFSampler(policy, sampling.max_sequences)
    return sampler.sample(prompts, SamplingParams.of_training(sampling))


def measure_pass(name: str, case: Case, rounds: int) -> list[dict[str, Any]]:
    """A row for each way: tokens, seconds of each pass, the largest peak."""
    policy = load_policy(case.config.model.path, case.config.model, share_prompts=True)
    rollouts = make_rollouts(name, case, policy)
    count = len(rollouts.truncated)
    rewards = (torch.arange(count) % 3 == 0).float()  # no group is unanimous
    reward = Reward(rewards=rewards, keep=torch.ones(count, dtype=torch.bool))
    learner = Learner(case.config, policy, None, lambda: None)
    rows = {way: {"model": name, "way": way, "seconds": [], "peaks": []} for way in WAYS}
    for number in range(rounds + 1):
        for way, shares_prompts in WAYS.items():
            policy.shares_prompts = shares_prompts
            gc.collect()
            run = partial(_run_pass, learner, rollouts, reward)
            tokens, seconds, peak = measure(run, policy.device)
            rows[way]["tokens"] = tokens
            if number:
                rows[way]["seconds"].append(seconds)
                rows[way]["peaks"].append(peak)
    shapes = {
        "rollouts": count,
        "prompt_tokens": statistics.mean(map(len, rollouts.prompts)),
        "completion_tokens": statistics.mean(rollouts.layout.lengths),
    }
    return [row | shapes for row in rows.values()]


def _run_pass(learner: Learner, rollouts: Rollouts, reward: Reward) -> int:
    """One training pass without an update. Returns the tokens that the model computed."""
    tokens = 0
    for micro_batches in learner.pack(rollouts, reward):
        for micro_batch in micro_batches:
            learner.loss(micro_batch).backward()
            tokens += len(micro_batch.input_ids)
    learner.discard_gradients()
    return tokens


def measure_steps(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds of each step of runs with each way. The runs take turns."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(rounds if case.steps else 0):
        for way, shares_prompts in WAYS.items():
            changes = {
                "train": {"steps": case.steps, "seed": seed, "shared_prompt": shares_prompts},
                "reward.kind": "majority",
                "checkpoint.every": 0,
                "evaluation.every": 0,
                "monitor.every": 0,
                "log": {"tensorboard": False, "sample_every": 0},
            }
            run = run_alone("srt_fast", override(case.config, changes), 0)
            seconds[way] += run["seconds"]
    return seconds


def table(rows: list[dict[str, Any]]) -> Table:
    """Each case's two ways. Times and tokens of "apart" over those of "shared"."""
    columns = [
        "model",
        "rollouts",
        "prompt, completion",
        "tokens apart, shared",
        "fewer",
        "pass, s",
        "times faster",
        "peak, MiB",
        "whole step, s",
        "times faster",
    ]
    lines = []
    for apart, shared in zip(rows[::2], rows[1::2], strict=True):
        passes = [statistics.median(row["seconds"]) for row in (apart, shared)]
        steps = [
            statistics.median(row["step_seconds"]) for row in (apart, shared) if row["step_seconds"]
        ]
        peaks = [max(row["peaks"]) / 2**20 for row in (apart, shared) if None not in row["peaks"]]
        lines.append(
            [
                apart["model"],
                str(apart["rollouts"]),
                f"{apart['prompt_tokens']:.0f}, {apart['completion_tokens']:.0f}",
                f"{apart['tokens']}, {shared['tokens']}",
                f"{apart['tokens'] / shared['tokens']:.2f}",
                *_pair(passes),
                ", ".join(f"{peak:,.0f}" for peak in peaks),
                *_pair(steps),
            ]
        )
    return "a prompt apart for each completion, and shared", columns, lines


def _pair(seconds: list[float]) -> tuple[str, str]:
    """Both ways' seconds and their ratio, or empty cells."""
    if not seconds:
        return "", ""
    apart, shared = seconds
    return f"{apart:.3g}, {shared:.3g}", f"{apart / shared:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("quickstart", "smollm", "larger", *RANDOM_TOKENS)
    parser.add_argument("--cases", nargs="+", choices=names, default=list(names))
    parser.add_argument("--rounds", type=int, default=5, help="passes of each way")
    parser.add_argument("--runs", type=int, default=2, help="runs of each way; 0: no whole steps")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write JSON, and a table")
    options = parser.parse_args()
    quiet_transformers()
    rows = []
    for name in options.cases:
        case = make_case(name)
        with RunProgress(quiet=False) as progress:
            path = starting_model(case.config, progress)
        case = replace(case, config=override(case.config, {"model.path": path}))
        pass_rows = measure_pass(name, case, options.rounds)
        steps = measure_steps(case, options.runs)
        rows += [row | {"step_seconds": steps[row["way"]]} for row in pass_rows]
        show(*table(rows[-2:]))
    if options.out:
        document: dict[str, Any] = {"how": __doc__, "environment": environment(CPU), "rows": rows}
        _, _, how = document["how"].split("\n\n", 2)  # without title and command
        save(options.out, document, [table(rows)], how)


if __name__ == "__main__":
    main()
