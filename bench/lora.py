"""LoRA beside full training, on the recipe smollm: pass@1, memory and seconds.

    python bench/lora.py --out bench/results/lora_smollm.json

Each run is a process of its own, one after the other. Memory is the process's peak resident set,
with imports. The learning rates are the recipe's, and twenty times that for adapters. Other options
are settings of both runs, such as --train.steps 10.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from measure import environment
from report import save, show
from srt_fast.config.recipes import smollm

LR = smollm().train.lr
WAYS = {
    "all weights": [],
    "LoRA, r 16": ["--model.lora.r", "16", "--train.lr", f"{20 * LR:g}"],
}


def run(settings: list[str], folder: Path) -> dict[str, Any]:
    """The summary of one run, and its peak memory in GiB."""
    command = [sys.executable, "-m", "srt_fast", "train", "smollm", "--run-dir", str(folder)]
    process = subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed: its folder is {folder}")
    return json.loads(output.splitlines()[-1]) | {"gib": usage.ru_maxrss / 2**20}


COLUMNS = ["trained", "steps", "pass@1 before", "after", "peak memory, GiB", "seconds"]


def line(way: str, result: dict[str, Any]) -> list[str]:
    """A row of the table."""
    before, after = result["pass1_start"], result["pass1_end"]
    numbers = [f"{before:.3f}", f"{after:.3f}", f"{result['gib']:.2f}", f"{result['seconds']:.0f}"]
    return [way, str(result["steps"]), *numbers]


def main() -> None:
    title, _command, note = __doc__.split("\n\n", 2)
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="and a table")
    parser.add_argument("--runs", type=Path, default=Path("runs/lora"), help="folder of the runs")
    options, settings = parser.parse_known_args()
    document: dict[str, Any] = {"how": __doc__, "environment": environment(torch.device("cpu"))}
    document["settings"] = settings
    document["runs"] = {}
    for way, changes in WAYS.items():
        folder = options.runs / way.replace(", ", "-").replace(" ", "-")
        document["runs"][way] = run([*changes, *settings], folder)
    lines = [line(way, result) for way, result in document["runs"].items()]
    table = ("Adapters and all weights", COLUMNS, lines)
    show(*table)
    save(options.out, document, [table], note)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
