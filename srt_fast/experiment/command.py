"""srt-fast experiment: run a grid, then write what it shows."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from srt_fast.errors import print_text
from srt_fast.experiment.grid import GRIDS, GROUPS
from srt_fast.run.interrupts import RunInterrupted

DESCRIPTION = """\
Runs a grid on the embedded model. Started again, the command continues where it stopped.
collapse: how self-training on the vote rises and collapses, and which reward functions do not. A
run takes two to four minutes on one or two cores. Writes collapse.md, collapse.json, collapse.png
and designs.png.
alarm: how early the alarm is, and how often it is false on runs of 1,000 steps, which take ten to
forty minutes each. Writes alarm.md and alarm.json."""


def main(argv: list[str]) -> int:
    """Run the command. Returns the exit code: 0, 1 (a run failed), or 128 + signal.

    In the last case the runs have saved. Raises ValueError for bad arguments.
    """
    options = _parser().parse_args(argv)
    _check(options)
    grid = GRIDS[options.experiment]()
    root = Path(options.runs or f"runs/{options.experiment}")
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

    for path in write_page(
        options.experiment, grid, options.seeds, root, Path(options.out or root)
    ):
        print_text(path)
    return 1 if failures else 0


def _check(options: argparse.Namespace) -> None:
    if options.jobs < 1:
        raise ValueError(f"--jobs: expected at least 1, got {options.jobs}")
    if min(options.seeds) < 0 or len(set(options.seeds)) < len(options.seeds):
        seeds = " ".join(map(str, options.seeds))
        raise ValueError(f"--seeds: expected different numbers from 0 up, got {seeds}")
    names = [arm.name for arm in GRIDS[options.experiment]()]
    unknown = sorted(set(options.arms or ()) - set(names))
    if unknown:
        raise ValueError(f"--arms: expected some of {', '.join(names)}, got {', '.join(unknown)}")


def _parser() -> argparse.ArgumentParser:
    jobs = os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="srt-fast experiment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=_arms_help(),
    )
    parser.add_argument("experiment", choices=list(GRIDS))
    parser.add_argument(
        "--runs",
        metavar="DIR",
        help="folder of the runs, with a folder ARM-seedN for each (default: runs/EXPERIMENT)",
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
    """The arms of the grids, for --help."""
    lines = []
    for experiment, grid in GRIDS.items():
        lines.append(f"arms of {experiment}:")
        for group, title in GROUPS.items():
            arms = [arm for arm in grid() if arm.group == group]
            if arms:
                lines.append(f"  {title}")
                lines += [f"    {arm.name:20} {arm.note}" for arm in arms]
    return "\n".join(lines)
