"""srt-fast experiment: run a grid, then write what it shows."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from srt_fast.errors import print_text
from srt_fast.experiment.grid import GROUPS, Arm, Grid, collapse_grid
from srt_fast.experiment.grid_file import read_grid
from srt_fast.run.interrupts import RunInterrupted

DESCRIPTION = """\
Runs a grid of arms and seeds, and writes a page. Started again, the command continues where it
stopped.
GRID is a YAML or TOML file with arms, tasks, models and seeds. docs/rewards.md has an example. The
file may grow: what is finished is not run again. FILE.yaml writes FILE.md, .html, .json and .png.
Or GRID is "collapse": how self-training on the vote rises and collapses, and which reward functions
do not, on the embedded model. A run takes two to four minutes on one or two cores. Writes
collapse.md, .html, .json and .png, and designs.png."""


def main(argv: list[str]) -> int:
    """Run the command. Returns the exit code: 0, 1 (a run failed), or 128 + signal.

    In the last case the runs have saved. Raises ValueError for bad arguments.
    """
    options = _parser().parse_args(argv)
    grid = _find_grid(options.grid)
    seeds = options.seeds or grid.seeds
    _check(options, seeds)
    arms = _choose_arms(grid, options.arms)
    root = Path(options.runs or f"runs/{grid.name}")
    failures: dict[str, str] = {}
    # Imports yaml and rich, which --help does not need.
    from srt_fast.experiment.runner import PlannedRun, run_grid

    if not options.report_only:
        try:
            failures = run_grid(arms, seeds, root, options.jobs, options.threads)
        except RunInterrupted as interrupt:
            command = shlex.join(["srt-fast", "experiment", *argv])
            print_text(f"Stopped by {interrupt}. Continue with: {command}")
            return 128 + interrupt.signal
    for name, reason in failures.items():
        print_text(f"error: {name}: {reason} (see {root / name}.log)", sys.stderr)
    for arm in grid.arms:  # the page shows all of them
        for seed in seeds:
            PlannedRun(arm, seed, root).has_finished()  # an error for another configuration
    # Imports matplotlib, which --help does not need.
    from srt_fast.experiment.page import write_page

    for path in write_page(grid, seeds, root, Path(options.out or root)):
        print_text(path)
    return 1 if failures else 0


def _find_grid(name: str) -> Grid:
    """The grid "collapse", or that of a file."""
    if name == "collapse":
        return collapse_grid()
    if not Path(name).is_file():
        raise ValueError(
            f"expected collapse or a YAML or TOML file, got {name!r}, which does not exist"
        )
    return read_grid(name)


def _choose_arms(grid: Grid, names: list[str] | None) -> list[Arm]:
    """The arms of these names, or of these names with their places. None: all."""
    known = dict.fromkeys(name for arm in grid.arms for name in (arm.name, arm.label))
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"--arms: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return [arm for arm in grid.arms if not names or {arm.name, arm.label} & set(names)]


def _check(options: argparse.Namespace, seeds: Sequence[int]) -> None:
    for name in ("jobs", "threads"):
        count = getattr(options, name)
        if count is not None and count < 1:
            raise ValueError(f"--{name}: expected at least 1, got {count}")
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        text = " ".join(map(str, seeds))
        raise ValueError(f"--seeds: expected different numbers from 0 up, got {text}")


def _parser() -> argparse.ArgumentParser:
    jobs = os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="srt-fast experiment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=_arms_help(),
    )
    parser.add_argument("grid", metavar="GRID", help="a YAML or TOML file, or collapse")
    parser.add_argument(
        "--runs",
        metavar="DIR",
        help="folder of the runs, with a folder [MODEL-][TASK-]ARM-seedN for each (default: "
        "runs/GRID)",
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
        help="one run per arm and seed (default: those of the file, or 0 1 2)",
    )
    parser.add_argument(
        "--arms",
        metavar="NAME",
        nargs="+",
        help="arms to run, or MODEL-TASK-ARM for one of a file's; the page shows every arm "
        "(default: all)",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=jobs,
        help=f"runs at the same time; they share the cores (default: one per core, {jobs})",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=int,
        help="threads of each run (default: the cores divided by the jobs)",
    )
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="run nothing; write the page of the finished runs",
    )
    return parser


def _arms_help() -> str:
    """The arms of "collapse", for --help."""
    lines = ["arms of collapse:"]
    grid = collapse_grid()
    for group, title in GROUPS.items():
        lines.append(f"  {title}")
        lines += [f"    {arm.name:20} {arm.note}" for arm in grid.arms if arm.group == group]
    return "\n".join(lines)
