"""Writes what an experiment found: collapse.md (tables), collapse.json (every number) and the figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from srt_fast.experiment import analysis
from srt_fast.experiment.analysis import ALARM, FALL, HACKED, WINDOW, Measured
from srt_fast.experiment.figure import collapse_figure, designs_figure
from srt_fast.experiment.grid import BASE, COLLAPSE, GROUPS, RISE, Arm

ARMS_TEXT = (
    "Held-out pass@1 in points, mean over seeds (lowest to highest). Collapsed: below the start with a pseudo-reward above "
    f"{HACKED:g} over the {WINDOW} steps before, which means little where a design's reward has another scale. Fell: more than "
    f"{100 * FALL:.0f} points below its peak so far. Time: a step's, beside the plain vote's."
)
WARNING_TEXT = (
    "Steps from a signal's first warning to the fall, on runs that fell, and false alarms on those that did not; without the "
    f"runs on which the monitor acted. Accuracy is known every {COLLAPSE['evaluation']['every']} steps."
)
STOPPING_TEXT = (
    "majority: the accuracy at the step with the best agreement with the starting model's votes before the first alarm, in a "
    "run that went on (its last evaluation at or before that step). majority_stop: the weights that the monitor restored; the "
    "best evaluation is the better of its own and that of the plain vote's run with the same seed."
)


def write_page(arms: Sequence[Arm], seeds: Sequence[int], root: Path, out: Path) -> list[Path]:
    """Read the finished runs in `root` and write everything to `out`. ValueError where no run is finished."""
    runs = analysis.read_runs(root, arms, seeds)
    if not runs:
        raise ValueError(f"{root}: expected finished runs of the grid, found none")
    found = findings(arms, seeds, [analysis.measure(run) for run in runs])
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("collapse.md", "collapse.json", "collapse.png", "designs.png")]
    paths[0].write_text(markdown(found))
    paths[1].write_text(json.dumps(found, indent=1) + "\n")
    collapse_figure(runs).savefig(paths[2])
    designs_figure(arms, runs).savefig(paths[3])
    return paths


def findings(
    arms: Sequence[Arm], seeds: Sequence[int], measured: Sequence[Measured]
) -> dict[str, Any]:
    """Everything that collapse.json holds."""
    compared = analysis.compare(arms, measured)
    return {
        "environment": environment(),
        "settings": {"base": BASE, "rise": RISE, "collapse": COLLAPSE},
        "seeds": list(seeds),
        "winner": analysis.winner(compared, len(seeds)),
        "rise": analysis.rise(measured),
        "arms": compared,
        "warning": analysis.warning_times(arms, measured),
        "early_stopping": analysis.early_stopping(measured),
        "runs": [asdict(each) for each in measured],
    }


def environment() -> dict[str, Any]:
    """Where the page was written: by the code, and on the machine, that the runs are meant to be of."""
    try:
        tree = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        )
        commit = tree.stdout.strip() or None
    except FileNotFoundError:
        commit = None
    info = Path("/proc/cpuinfo")
    models = (
        [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.is_file()
        else []
    )
    return {
        "commit": commit,
        "torch": version("torch"),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def markdown(found: dict[str, Any]) -> str:
    """The page: the questions of the experiment with their answers, then the tables that they were read from."""
    return (
        "\n\n".join(
            [
                "# Rise, collapse and rescue",
                _head(found),
                "\n".join(
                    f"- {line}"
                    for line in (
                        _rise_sentence(found["rise"]),
                        _collapse_sentence(found["runs"]),
                        _warning_sentence(found["warning"]),
                        _stopping_sentence(found["early_stopping"]),
                        _winner_sentence(found["winner"]),
                    )
                ),
                "![majority_long and oracle over steps](collapse.png)",
                "## Rise",
                _rise_table(found["rise"]),
                "## Collapse and rescue",
                ARMS_TEXT,
                _arms_table(found["arms"]),
                "![held-out pass@1 of every arm](designs.png)",
                "A line is a seed, a dot its end; grey: the plain vote's mean (solid), gold answers' (dashed).",
                "## Warning",
                WARNING_TEXT,
                _warning_table(found["warning"]),
                "## Early stopping without labels",
                STOPPING_TEXT,
                _stopping_table(found["early_stopping"]),
                "## Every run",
                _runs_table(found["runs"]),
            ]
        )
        + "\n"
    )


def _head(found: dict[str, Any]) -> str:
    where, rise, collapse = found["environment"], RISE["train"], COLLAPSE["train"]
    return (
        f"Written by `srt-fast experiment collapse` (commit {where['commit'] or 'unknown'}, torch {where['torch']}, "
        f"{where['cpu']}, {where['cores']} cores, {where['date']}): the embedded quickstart model on 3-digit sums, seeds "
        f"{_list(found['seeds'])}. Rise: {rise['steps']} steps of {rise['prompts_per_step']} prompts at lr {rise['lr']:g}, the "
        f"recipe's own. All else: {collapse['steps']} steps of {collapse['prompts_per_step']} prompts at lr {collapse['lr']:g}."
    )


def _rise_sentence(rows: list[dict]) -> str:
    shares = [row["share"] for row in rows if row["share"] is not None]
    if not shares:
        return "Rise: not run."
    better = sum(row["maj_end"] > row["maj_start"] for row in rows)
    return (
        f"Rise: at its peak the plain vote has {100 * statistics.fmean(shares):.0f} % of the gain with gold answers (lowest "
        f"seed: {100 * min(shares):.0f} %); maj@k is higher after than before in {better} of {len(rows)} runs."
    )


def _collapse_sentence(runs: list[dict]) -> str:
    plain = [run for run in runs if run["arm"] == "majority_long"]
    if not plain:
        return "Collapse: not run."
    steps = sorted(run["collapsed"] for run in plain if run["collapsed"] is not None)
    when = f" (at step {_list(steps)})" if steps else ""
    ends = _points(statistics.fmean(run["end"] for run in plain))
    return (
        f"Collapse: {len(steps)} of {len(plain)} long runs of the plain vote{when} came below the starting model with a "
        f"pseudo-reward above {HACKED:g}; pass@1 ends at {ends} points on average."
    )


def _warning_sentence(rows: list[dict]) -> str:
    alarm = next((row for row in rows if row["signal"] == ALARM), None)
    if alarm is None:
        return "Warning: no run logged an alarm."
    lead = alarm["lead"]
    when = (
        f", a median of {lead['median']:g} steps ahead ({lead['min']} to {lead['max']})"
        if lead
        else ""
    )
    return (
        f"Warning: the alarm came before the fall in {alarm['before']} of {alarm['fell']} runs that fell{when}; "
        f"false alarms in {alarm['false_alarms']} of {alarm['stood']} runs that did not."
    )


def _stopping_sentence(rows: list[dict]) -> str:
    said = []
    for arm, what in (
        ("majority", "the step that the monitor would choose"),
        ("majority_stop", "the weights that it restored"),
    ):
        losses = [row["loss"] for row in rows if row["arm"] == arm and row["loss"] is not None]
        said.append(
            f"{what}: "
            + (
                f"{_points(statistics.fmean(losses))} points on average, at most {_points(max(losses))}"
                if losses
                else "not run"
            )
        )
    return f"Early stopping without labels, loss against the best checkpoint chosen with labels: {'; '.join(said)}."


def _winner_sentence(winner: dict | None) -> str:
    if winner is None:
        return "Rescue: no label-free feedback has a run of every seed."
    beside = (
        f", {_points(winner['margin'])} points above `{winner['next']}`" if winner["next"] else ""
    )
    return f"Rescue: of the label-free feedbacks `{winner['arm']}` ends highest, at {_spread(winner['end'])}{beside}."


def _rise_table(rows: list[dict]) -> str:
    return _table(
        "seed | start | peak | peak with gold | share of its gain | maj@k before | after",
        [
            [
                row["seed"],
                *(_points(row[name]) for name in ("start", "peak", "oracle_peak")),
                "-" if row["share"] is None else f"{100 * row['share']:.0f} %",
                _points(row["maj_start"]),
                _points(row["maj_end"]),
            ]
            for row in rows
        ],
    )


def _arms_table(rows: list[dict]) -> str:
    lines = []
    for group, title in GROUPS.items():
        mine = [row for row in rows if row["group"] == group]
        lines += [[f"**{group}**", f"**{title}**"], *map(_arm_line, mine)] if mine else []
    return _table(
        "arm | | runs | peak | end | maj@k at the end | collapsed | fell | ended below start | time",
        lines,
    )


def _arm_line(row: dict) -> list:
    name, runs = [f"`{row['arm']}`", row["note"]], row["runs"]
    if not runs:
        return [*name, "not run"]
    return [
        *name,
        runs,
        *(_spread(row[key]) for key in ("peak", "end", "maj_end")),
        *(f"{row[key]}/{runs}" for key in ("collapsed", "fell", "ended_below_start")),
        "-" if row["relative_seconds"] is None else f"{row['relative_seconds']:.2f}",
    ]


def _warning_table(rows: list[dict]) -> str:
    return _table(
        "signal | runs that fell | warned before | not before | never | steps ahead: median | range "
        "| runs that did not fall | false alarms",
        [
            [
                row["signal"],
                row["fell"],
                row["before"],
                row["late"],
                row["never"],
                *(
                    [f"{row['lead']['median']:g}", f"{row['lead']['min']} to {row['lead']['max']}"]
                    if row["lead"]
                    else ["-", "-"]
                ),
                row["stood"],
                row["false_alarms"],
            ]
            for row in rows
        ],
    )


def _stopping_table(rows: list[dict]) -> str:
    return _table(
        "arm | seed | first alarm | step chosen | pass@1 there | best evaluation | at step | loss in points",
        [
            [
                f"`{row['arm']}`",
                row["seed"],
                row["alarm"],
                row["step"],
                _points(row["pass1"]),
                _points(row["best"]),
                row["best_step"],
                _points(row["loss"]),
            ]
            for row in rows
        ],
    )


def _runs_table(runs: list[dict]) -> str:
    return _table(
        "arm | seed | start | peak | at step | end | pseudo-reward | commonest answer | label accuracy | collapsed at "
        "| fell at | first alarm | monitor | s",
        [
            [
                f"`{run['arm']}`",
                run["seed"],
                _points(run["start"]),
                _points(run["peak"]),
                run["peak_step"],
                _points(run["end"]),
                *(
                    None if run[name] is None else f"{run[name]:.3f}"
                    for name in ("pseudo_reward", "top_answer_share", "label_accuracy")
                ),
                run["collapsed"],
                run["fell"],
                run["warnings"].get(ALARM),
                run["action"],
                f"{run['seconds']:.0f}",
            ]
            for run in runs
        ],
    )


def _table(header: str, rows: list[list]) -> str:
    """A Markdown table. A cell of None is a dash; a row may be shorter than the header."""
    if not rows:
        return "Not run."
    names = [name.strip() for name in header.split("|")]
    cells = [
        ["-" if cell is None else str(cell) for cell in row] + [""] * (len(names) - len(row))
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *cells])


def _spread(spread: dict) -> str:
    return f"{_points(spread['mean'])} ({_points(spread['min'])} to {_points(spread['max'])})"


def _points(value: float | None) -> str | None:
    """A fraction in points."""
    return None if value is None else f"{100 * value:.1f}"


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))
