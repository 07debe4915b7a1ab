"""Writes what an experiment shows: a page, its numbers as JSON, and the figures of the collapse."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from srt_fast.experiment import compare, sentences, tables
from srt_fast.experiment.figure import arms_figure, collapse_figure
from srt_fast.experiment.grid import BASE, COLLAPSE, LONG_RUNS, RISE, Arm, Experiment
from srt_fast.experiment.measure import (
    COLLAPSE_REWARD,
    FALL,
    WINDOW,
    RunResult,
    measure,
    read_runs,
)

ARMS_TEXT = (
    "Held-out pass@1 in points: the mean over seeds (lowest to highest). Collapses: the accuracy "
    f"is below the start after {WINDOW} steps with a mean pseudo-reward above "
    f"{COLLAPSE_REWARD:g}. This means little for a reward on another scale. Falls: the accuracy is "
    f"more than {100 * FALL:.0f} points below its peak until then. Time: of a step, relative to "
    "the plain vote's."
)
LEAD_TEXT = (
    "Steps from the first alarm or warning to the fall, in runs that fell, and how often there was "
    "one in runs that did not. Runs in which the monitor acted are left out. The accuracy is known "
    f"every {COLLAPSE['evaluation']['every']} steps in the runs of the collapse, and every "
    f"{LONG_RUNS['evaluation']['every']} in the runs of the alarm."
)
RULES_TEXT = (
    "Every rule judges the same logged looks. `10,000 looks` and `chance of 1 %`: the sequential "
    "test with `monitor.false_alarm_looks` or `monitor.false_alarm_chance`. `best look`: 10 points "
    "below the best of all looks, the rule before it."
)
STOPPING_TEXT = (
    "majority: the accuracy at the step with the best agreement with the starting model's votes "
    "before the first alarm, in a run that went on (its last evaluation at or before that step). "
    "majority_stop: the weights that the monitor restored. Its best evaluation is the better of "
    "its own and that of the plain vote's run with the same seed."
)


def write_page(
    experiment: Experiment, arms: Sequence[Arm], seeds: Sequence[int], root: Path, out: Path
) -> list[Path]:
    """Read the finished runs in `root` and write page, numbers and figures to `out`.

    Returns the paths of the files. Raises ValueError if no run has finished.
    """
    runs = read_runs(root, arms, seeds)
    if not runs:
        raise ValueError(f"{root}: expected finished runs of the grid, got none")
    numbers = findings(arms, seeds, [measure(run) for run in runs])
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{experiment}.md", out / f"{experiment}.json"]
    page = collapse_page if experiment == "collapse" else alarm_page
    paths[0].write_text(page(numbers))
    paths[1].write_text(json.dumps(numbers, indent=1) + "\n")
    if experiment == "collapse":
        figures = {
            "collapse.png": collapse_figure(runs),
            "designs.png": arms_figure(arms, runs),
        }
        for name, figure in figures.items():
            paths.append(out / name)
            figure.savefig(paths[-1])
    return paths


def findings(
    arms: Sequence[Arm], seeds: Sequence[int], results: Sequence[RunResult]
) -> dict[str, Any]:
    """The content of the JSON file."""
    arm_rows = compare.compare_arms(arms, results)
    return {
        "environment": environment(),
        "settings": {"base": BASE, "rise": RISE, "collapse": COLLAPSE, "long": LONG_RUNS},
        "seeds": list(seeds),
        "winner": compare.winner(arm_rows, len(seeds)),
        "rise": compare.rise(results),
        "arms": arm_rows,
        "alarm": compare.alarm_times(arms, results),
        "warning": compare.warning_times(arms, results),
        "early_stopping": compare.early_stopping(results),
        "runs": [asdict(result) for result in results],
    }


def environment() -> dict[str, Any]:
    """Commit and machine that write the page. They are taken for those of the runs."""
    return {
        "commit": _commit(),
        "torch": version("torch"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _commit() -> str | None:
    try:
        process = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        )
    except FileNotFoundError:  # no git
        return None
    return process.stdout.strip() or None


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def collapse_page(numbers: dict[str, Any]) -> str:
    """The answers in sentences, then the tables that they come from."""
    parts = [
        "# Rise, collapse and rescue",
        sentences.introduction(numbers),
        sentences.answers(numbers),
        "![majority_long and oracle over steps](collapse.png)",
        "## Rise",
        tables.rise(numbers["rise"]),
        "## Collapse and rescue",
        ARMS_TEXT,
        tables.arms(numbers["arms"]),
        "![held-out pass@1 of every arm](designs.png)",
        "A line is a seed, and a dot its end. Grey: the mean of the plain vote (solid) and of gold "
        "answers (dashed).",
        *_leads(numbers),
        "## Early stopping without labels",
        STOPPING_TEXT,
        tables.early_stopping(numbers["early_stopping"]),
        "## Every run",
        tables.runs(numbers["runs"]),
    ]
    return "\n\n".join(parts) + "\n"


def alarm_page(numbers: dict[str, Any]) -> str:
    """The alarm's rules on long healthy runs and on runs that collapse."""
    parts = [
        "# The alarm on long runs",
        sentences.machine(numbers["environment"]),
        f"- {sentences.alarm(numbers['alarm'])}",
        *_leads(numbers),
        "## Every run",
        tables.runs(numbers["runs"]),
    ]
    return "\n\n".join(parts) + "\n"


def _leads(numbers: dict[str, Any]) -> list[str]:
    return [
        "## Alarm",
        LEAD_TEXT,
        RULES_TEXT,
        tables.leads("rule", numbers["alarm"]),
        "## Warnings",
        "What is shown and raises no alarm.",
        tables.leads("sign", numbers["warning"]),
    ]
