"""srt-fast experiment collapse: run the grid, then write what it shows."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from srt_fast.errors import print_text
from srt_fast.experiment.grid import GROUPS, collapse_grid
from srt_fast.run.interrupts import RunInterrupted

DESCRIPTION = """\
How self-training on the vote rises and collapses, and which reward functions do not collapse. Runs
a grid on the embedded model. A run takes two to four minutes on one or two cores. Started again,
the command continues where it stopped. Writes collapse.md, collapse.json, collapse.png and
designs.png."""


def main(argv: list[str]) -> int:
    """Run the command. Returns the exit code: 0, 1 (a run failed), or 128 + signal.

    In the last case the runs have saved. Raises ValueError for bad arguments.
    """
    options = _parser().parse_args(argv)
    _check(options)
    grid = collapse_grid()
    root = Path(options.runs)
    failures: dict[str, str] = {}
    if not options.report_only:
        # Imports yaml and rich, which --help does not need.
        from srt_fast.experiment.runner import run_grid

        arms = [arm for arm in grid if not options.arms or arm.name in options.arms]
        try:
            failures = run_grid(arms, options.seeds, root, options.jobs)
        except RunInterrupted as interrupt:
            command = shlex.join(["srt-fast", "experiment", *argv])
            print_text(f"Stopped by {interrupt}. Continue with: {command}")
            return 128 + interrupt.signal
    for name, reason in failures.items():
        print_text(f"error: {name}: {reason} (see {root / name}.log)", sys.stderr)
    # Imports matplotlib, which --help does not need.
    from srt_fast.experiment.page import write_page

    for path in write_page(grid, options.seeds, root, Path(options.out or root)):
        print_text(path)
    return 1 if failures else 0


def _check(options: argparse.Namespace) -> None:
    if options.jobs < 1:
        raise ValueError(f"--jobs: expected at least 1, got {options.jobs}")
    if min(options.seeds) < 0 or len(set(options.seeds)) < len(options.seeds):
        seeds = " ".join(map(str, options.seeds))
        raise ValueError(f"--seeds: expected different numbers from 0 up, got {seeds}")


def _parser() -> argparse.ArgumentParser:
    jobs = os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="srt-fast experiment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=_arms_help(),
    )
    parser.add_argument("experiment", choices=["collapse"])
    parser.add_argument(
        "--runs",
        metavar="DIR",
        default="runs/collapse",
        help="folder of the runs, with a folder ARM-seedN for each (default: runs/collapse)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for tables and figures (default: the folder of the runs)",
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="one run per arm and seed (default: 0 1 2)",
    )
    parser.add_argument(
        "--arms",
        metavar="NAME",
        nargs="+",
        choices=[arm.name for arm in collapse_grid()],
        help="arms to run; the page shows every arm (default: all)",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=jobs,
        help=f"runs at the same time; they share the cores (default: one per core, {jobs})",
    )
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="run nothing; write the page of the finished runs",
    )
    return parser


def _arms_help() -> str:
    """The arms of the grid, for --help."""
    lines = ["arms:"]
    for group, title in GROUPS.items():
        lines.append(f"  {title}")
        lines += [f"    {arm.name:20} {arm.note}" for arm in collapse_grid() if arm.group == group]
    return "\n".join(lines)
