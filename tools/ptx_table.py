"""A table of the errors that tests/kernels/test_ptx.py found, from its report.

    SRT_PTX=all python -m pytest tests/kernels/test_ptx.py --junitxml=ptx.xml
    PYTHONPATH=bench python tools/ptx_table.py ptx.xml --out bench/results/ptx.md

A cell is the largest error over the cases and schedules of a type on a chip. Exit status 1 if a
test failed, or if no case launched some kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import triton

from measure import environment
from ptx.launch import kernel_names
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
    for row in _rows(report):
        kernels[row["op"]].update(row["kernels"])
        cells = errors[row["op"], row["quantity"]]
        cell = (row["dtype"], row["arch"])
        cells[cell] = max(cells.get(cell, 0.0), row["error"])
    return {
        (f"{op} ({', '.join(sorted(kernels[op]))})", quantity): cells
        for (op, quantity), cells in errors.items()
    }


def kernels_not_run(report: ElementTree.Element) -> set[str]:
    """The kernels of srt_kernels that no case launched."""
    run = {kernel for row in _rows(report) for kernel in row["kernels"]}
    return kernel_names() - run


def _rows(report: ElementTree.Element) -> Iterator[dict[str, Any]]:
    for node in report.iter("property"):
        if node.get("name") == "ptx":
            yield json.loads(node.get("value", ""))


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
    missing = sorted(kernels_not_run(report))
    if missing:
        print(f"No case launched {', '.join(missing)}.", file=sys.stderr)
    if options.out:
        options.out.write_text(text)
    return int(failures > 0 or bool(missing))


if __name__ == "__main__":
    sys.exit(main())
