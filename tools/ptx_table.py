"""A table of the errors that tests/kernels/test_ptx.py found, from its report.

    SRT_PTX=all python -m pytest tests/kernels/test_ptx.py --junitxml=ptx.xml
    PYTHONPATH=bench python tools/ptx_table.py ptx.xml --out bench/results/ptx.md

A cell is the largest error over the cases and schedules of a type on a chip.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import torch
import triton

from measure import environment
from report import markdown

HEADER = """# Kernels in the PTX emulator

Written by `make ptx`. No GPU: Triton {triton} compiled for each chip, tools/ptx executed the PTX.
Commit {commit}{dirty}, {date}, {cases} cases, {failures} failures.

A cell is the largest error against the fp64 reference over all cases and schedules. Log-probs and
entropies are in nats. Gradients' errors are relative, of the norm. Those "of its rounding alone"
come of rounding exact dlogits and the exact result to the type, and of nothing else.
"""
TYPES = ("bf16", "fp16", "fp32", "int")
CHIPS = ("80", "90")


def read_errors(report: ElementTree.Element) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    """By (op and its kernels, quantity), then by (type, chip): the largest error."""
    kernels: dict[str, set[str]] = defaultdict(set)
    errors: dict[tuple[str, str], dict[tuple[str, str], float]] = defaultdict(dict)
    for node in report.iter("property"):
        if node.get("name") != "ptx":
            continue
        row = json.loads(node.get("value", ""))
        kernels[row["op"]].update(row["kernels"])
        cells = errors[row["op"], row["quantity"]]
        cell = (row["dtype"], row["arch"])
        cells[cell] = max(cells.get(cell, 0.0), row["error"])
    return {
        (f"{op} ({', '.join(sorted(kernels[op]))})", quantity): cells
        for (op, quantity), cells in errors.items()
    }


def table(report: ElementTree.Element) -> str:
    """Markdown: a line for each op and quantity, a column for each type on each chip."""
    errors = read_errors(report)
    columns = [(dtype, arch) for dtype in TYPES for arch in CHIPS]
    lines = []
    for (op, quantity), cells in sorted(errors.items()):
        figures = [f"{cells[cell]:.1e}" if cell in cells else "" for cell in columns]
        lines.append([op, quantity, *figures])
    heads = [f"{dtype} sm_{arch}" for dtype, arch in columns]
    return markdown("Largest errors", ["op (kernels)", "quantity", *heads], lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="JUnit XML of pytest")
    parser.add_argument("--out", type=Path, help="Markdown file")
    options = parser.parse_args()
    report = ElementTree.parse(options.report).getroot()
    cases = list(report.iter("testcase"))
    failures = sum(case.find("failure") is not None for case in cases)
    facts = environment(torch.device("cpu"))
    header = HEADER.format(
        triton=triton.__version__,
        commit=facts["commit"],
        dirty=" with changes" if facts["dirty"] else "",
        date=facts["date"],
        cases=len(cases),
        failures=failures,
    )
    text = f"{header}\n{table(report)}"
    print(text)
    if options.out:
        options.out.write_text(text)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
