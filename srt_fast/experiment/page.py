"""Writes what an experiment shows: a page, its numbers as JSON, and figures."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from srt_fast.experiment import compare, sentences, tables
from srt_fast.experiment.document import Block, Document, Picture
from srt_fast.experiment.figure import arms_figure, collapse_figure
from srt_fast.experiment.file_figure import file_figure
from srt_fast.experiment.grid import BASE, COLLAPSE, RISE, Arm, Grid
from srt_fast.experiment.measure import (
    FinishedRun,
    RunResult,
    can_measure,
    measure,
    read_runs,
)
from srt_fast.files import write_atomically

OWN_SECTIONS = ("Curves", "Terms", "Arms", "Alarm", "Warnings")
"""Sections of a file's page that could be a task's name."""


def write_page(grid: Grid, seeds: Sequence[int], root: Path, out: Path) -> list[Path]:
    """Read the finished runs in `root` and write page, numbers and figures to `out`.

    Runs that cannot be measured are left out. Returns the paths of the files. Raises ValueError if
    no other run has finished.
    """
    runs = [run for run in read_runs(root, grid.arms, seeds) if can_measure(run)]
    if not runs:
        raise ValueError(f"{root}: expected finished runs of the grid, got none")
    results = [measure(run) for run in runs]
    if grid.page == "arms":
        numbers = file_findings(grid, seeds, results)
        document = file_document(grid, runs, numbers)
    else:
        numbers = collapse_findings(grid.arms, seeds, results)
        document = collapse_document(grid, runs, numbers)
    out.mkdir(parents=True, exist_ok=True)
    numbers_file = out / f"{grid.name}.json"
    write_atomically(numbers_file, json.dumps(numbers, indent=1, default=str) + "\n")
    return [numbers_file, *document.write(out, grid.name)]


def collapse_findings(
    arms: Sequence[Arm], seeds: Sequence[int], results: Sequence[RunResult]
) -> dict[str, Any]:
    """The JSON of the grid "collapse"."""
    arm_rows = compare.compare_arms(arms, results)
    return {
        "environment": environment(),
        "settings": {"base": BASE, "rise": RISE, "collapse": COLLAPSE},
        "seeds": list(seeds),
        "winner": compare.winner(arm_rows, len(seeds)),
        "rise": compare.rise(results),
        "arms": arm_rows,
        "alarm": compare.alarm_times(results),
        "warning": compare.warning_times(results),
        "early_stopping": compare.early_stopping(results),
        "runs": [asdict(result) for result in results],
    }


def file_findings(grid: Grid, seeds: Sequence[int], results: Sequence[RunResult]) -> dict[str, Any]:
    """The JSON of a file's grid. Times are relative to the arm "majority", else to the first."""
    names = [arm.name for arm in grid.arms]
    reference = "majority" if "majority" in names else names[0]
    places = {}
    for place in dict.fromkeys(arm.place for arm in grid.arms):
        arms = [arm for arm in grid.arms if arm.place == place]
        here = [result for result in results if result.place == place]
        places[place] = {
            "arms": compare.compare_arms(arms, here, reference),
            "labels": compare.labels_over_time(arms, here),
            "turns": compare.turn_scores(arms, here),
        }
    return {
        "environment": environment(),
        "grid": grid.values,
        "seeds": list(seeds),
        "reference": reference,
        "places": places,
        "failures": compare.failures_by_arm(grid.arms, results),
        "alarm": compare.alarm_times(results),
        "warning": compare.warning_times(results),
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


def collapse_document(grid: Grid, runs: Sequence[FinishedRun], numbers: dict[str, Any]) -> Document:
    """The answers in sentences, then the tables that they come from."""
    curves = Picture(
        "collapse.png", "majority_long and oracle over steps", partial(collapse_figure, runs)
    )
    designs = Picture(
        "designs.png", "held-out pass@1 of every arm", partial(arms_figure, grid.arms, runs)
    )
    return Document(
        "Rise, collapse and rescue",
        sentences.introduction(numbers),
        {
            "Answers": [sentences.answers(numbers), curves],
            "Rise": [tables.rise(numbers["rise"])],
            "Collapse and rescue": [
                sentences.ARMS,
                tables.arms(numbers["arms"]),
                designs,
                "A line is a seed, and a dot its end. Grey: the mean of the plain vote (solid) and "
                "of gold answers (dashed).",
            ],
            **_leads(numbers),
            "Early stopping without labels": [
                sentences.STOPPING,
                tables.early_stopping(numbers["early_stopping"]),
            ],
            "Every run": [tables.runs(numbers["runs"])],
        },
    )


def file_document(grid: Grid, runs: Sequence[FinishedRun], numbers: dict[str, Any]) -> Document:
    """A section for each model and task of a file's grid, then the alarm and every run."""
    curves = Picture(
        f"{grid.name}.png",
        "accuracy, vote and labels of each arm over steps",
        partial(file_figure, grid.arms, runs),
    )
    places: dict[str, list[Block]] = {
        _heading(place): [
            tables.file_arms(found["arms"]),
            "The vote and the labels over time:",
            tables.labels(found["labels"]),
            *(["The later turns:", tables.turns(found["turns"])] if found["turns"] else []),
        ]
        for place, found in numbers["places"].items()
    }
    if len(places) > 1:
        places["All models and tasks"] = [tables.failures(numbers["failures"])]
    return Document(
        grid.title,
        sentences.file_introduction(numbers, grid.note),
        {
            "Curves": [curves],
            "Terms": [sentences.file_terms(numbers["reference"])],
            **places,
            **_leads(numbers),
            "Every run": [tables.runs(numbers["runs"])],
        },
    )


def _heading(place: str) -> str:
    """The section of a model and task. It is not one of the page's own."""
    return f"Task {place}" if place in OWN_SECTIONS else place or "Arms"


def _leads(numbers: dict[str, Any]) -> dict[str, list[Block]]:
    """Nothing without looks of the monitor."""
    if not any(run["looks"] for run in numbers["runs"]):
        return {}
    return {
        "Alarm": [
            sentences.LEADS,
            sentences.RULES,
            tables.leads("rule", numbers["alarm"]),
        ],
        "Warnings": [
            "What is shown and raises no alarm.",
            tables.leads("sign", numbers["warning"]) if numbers["warning"] else "There was none.",
        ],
    }
