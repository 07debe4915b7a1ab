"""srt-fast experiment collapse: run the grid, then write what it shows."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from srt_fast.experiment.grid import GROUPS, collapse_grid
from srt_fast.run.interrupts import RunInterrupted

DESCRIPTION = """\
The rise and collapse of self-training on the vote, and designs that do not collapse, on the embedded model: a grid of runs of two
to four minutes on one or two cores each. Started again, it goes on where it was. Writes collapse.md, collapse.json, collapse.png
and designs.png."""


def main(argv: list[str]) -> int:
    """The command line. Returns 0, 1 (a run failed), or 128 + signal (interrupted; the runs have saved)."""
    options = _parser().parse_args(argv)
    if options.jobs < 1:
        raise ValueError(f"--jobs: expected at least 1, got {options.jobs}")
    if min(options.seeds) < 0 or len(set(options.seeds)) < len(options.seeds):
        raise ValueError(
            f"--seeds: expected different numbers from 0 up, got {' '.join(map(str, options.seeds))}"
        )
    grid, root, failures = collapse_grid(), Path(options.runs), {}
    chosen = [arm for arm in grid if not options.arms or arm.name in options.arms]
    if not options.report_only:
        from srt_fast.experiment.runner import run_grid

        try:
            failures = run_grid(chosen, options.seeds, root, options.jobs)
        except RunInterrupted as stop:
            print(f"Stopped by {stop}. Go on with: srt-fast experiment {shlex.join(argv)}")
            return 128 + stop.signal
    for name, reason in failures.items():
        print(f"error: {name}: {reason} (see {root / name}.log)", file=sys.stderr)
    from srt_fast.experiment.page import write_page

    for path in write_page(grid, options.seeds, root, Path(options.out or root)):
        print(path)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    grid, jobs = collapse_grid(), os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="srt-fast experiment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=_arms(),
    )
    parser.add_argument("experiment", choices=["collapse"])
    parser.add_argument(
        "--runs",
        metavar="DIR",
        default="runs/collapse",
        help="folder of the runs, a folder ARM-seedN each (default: runs/collapse)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where tables and figures go (default: the folder of the runs)"
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="one run per arm and seed (0 1 2)",
    )
    parser.add_argument(
        "--arms",
        metavar="NAME",
        nargs="+",
        choices=[arm.name for arm in grid],
        help="run these alone; the report shows every arm (default: all)",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=jobs,
        help=f"runs at the same time, which share the cores (default: one per core, {jobs})",
    )
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="run nothing; write tables and figures of the finished runs",
    )
    return parser


def _arms() -> str:
    """The grid, for --help."""
    lines = ["arms:"]
    for group, title in GROUPS.items():
        lines.append(f"  {title}")
        lines += [f"    {arm.name:20} {arm.note}" for arm in collapse_grid() if arm.group == group]
    return "\n".join(lines)
