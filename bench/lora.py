"""LoRA beside full training, on the recipe smollm: pass@1, memory and seconds.

    python bench/lora.py --out bench/results/lora_smollm.md

Each run is a process of its own, one after the other. Memory is the process's peak resident set,
with imports. The learning rates are the recipe's, and twenty times that for adapters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row a way."""
    lines = [
        "| trained | steps | pass@1 before | after | peak memory, GiB | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, result in results.items():
        lines.append(
            f"| {way} | {result['steps']} | {result['pass1_start']:.3f} | "
            f"{result['pass1_end']:.3f} | {result['gib']:.2f} | {result['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a Markdown file")
    parser.add_argument("--runs", type=Path, default=Path("runs/lora"), help="folder of the runs")
    options, settings = parser.parse_known_args()
    results = {}
    for way, changes in WAYS.items():
        folder = options.runs / way.replace(", ", "-").replace(" ", "-")
        results[way] = run([*changes, *settings], folder)
    options.out.write_text(table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
