"""The experiment's tables in Markdown. Their rows are those of page.findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srt_fast.experiment.grid import GROUPS
from srt_fast.experiment.measure import ALARM

Row = dict[str, Any]
Cells = list[Any]


def rise(rows: list[Row]) -> str:
    header = "seed | start | peak | peak with gold | share of its gain | maj@k at start | at end"
    lines = []
    for row in rows:
        share = None if row["share"] is None else f"{100 * row['share']:.0f} %"
        lines.append(
            [
                row["seed"],
                points(row["start"]),
                points(row["peak"]),
                points(row["oracle_peak"]),
                share,
                points(row["maj_start"]),
                points(row["maj_end"]),
            ]
        )
    return _table(header, lines)


def arms(rows: list[Row]) -> str:
    header = (
        "arm | | runs | peak | end | maj@k at the end | collapses | falls | ends below start | time"
    )
    lines = []
    for group, title in GROUPS.items():
        group_rows = [row for row in rows if row["group"] == group]
        if group_rows:
            lines.append([f"**{group}**", f"**{title}**"])
            lines += [_arm_cells(row) for row in group_rows]
    return _table(header, lines)


def _arm_cells(row: Row) -> Cells:
    name = f"`{row['arm']}`"
    runs = row["runs"]
    if not runs:
        return [name, row["note"], "not run"]
    seconds = row["relative_seconds"]
    return [
        name,
        row["note"],
        runs,
        spread(row["peak"]),
        spread(row["end"]),
        spread(row["maj_end"]),
        f"{row['collapses']}/{runs}",
        f"{row['falls']}/{runs}",
        f"{row['ends_below_start']}/{runs}",
        None if seconds is None else f"{seconds:.2f}",
    ]


def leads(name: str, rows: list[Row]) -> str:
    """How far ahead of a fall each signal is. name: the first column's."""
    header = (
        f"{name} | runs that fell | before | not before | never | steps ahead: median "
        "| range | runs that did not fall | looks of these | false on"
    )
    lines = []
    for row in rows:
        lead = row["lead"]
        lines.append(
            [
                row["signal"],
                row["falls"],
                row["early"],
                row["late"],
                row["missed"],
                f"{lead['median']:g}" if lead else None,
                f"{lead['min']} to {lead['max']}" if lead else None,
                row["stable"],
                row["stable_looks"],
                row["false_alarms"],
            ]
        )
    return _table(header, lines)


def early_stopping(rows: list[Row]) -> str:
    header = (
        "arm | seed | first alarm | step chosen | pass@1 there | best evaluation | at step "
        "| loss in points"
    )
    lines = [
        [
            f"`{row['arm']}`",
            row["seed"],
            row["alarm_step"],
            row["step"],
            points(row["pass1"]),
            points(row["best_pass1"]),
            row["best_step"],
            points(row["loss"]),
        ]
        for row in rows
    ]
    return _table(header, lines)


def runs(rows: list[Row]) -> str:
    header = (
        "arm | seed | start | peak | at step | end | pseudo-reward | commonest answer "
        "| label accuracy | collapse at | fall at | first alarm | monitor | s"
    )
    lines = [
        [
            f"`{run['arm']}`",
            run["seed"],
            points(run["start"]),
            points(run["peak"]),
            run["peak_step"],
            points(run["end"]),
            _fraction(run["pseudo_reward"]),
            _fraction(run["top_answer_share"]),
            _fraction(run["label_accuracy"]),
            run["collapse_step"],
            run["fall_step"],
            run["warning_steps"].get(ALARM),
            run["actions"],
            f"{run['seconds']:.0f}",
        ]
        for run in rows
    ]
    return _table(header, lines)


def points(value: float | None) -> str | None:
    """A fraction in points: 0.5 is "50.0"."""
    return None if value is None else f"{100 * value:.1f}"


def spread(values: dict[str, float]) -> str:
    """Mean, lowest and highest in points: "70.0 (65.0 to 75.0)"."""
    return f"{points(values['mean'])} ({points(values['min'])} to {points(values['max'])})"


def _fraction(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _table(header: str, lines: Sequence[Cells]) -> str:
    """A Markdown table. A cell of None is a dash. A line may be shorter than the header."""
    if not lines:
        return "Not run."
    names = [name.strip() for name in header.split("|")]
    rows = [names, ["---"] * len(names)]
    for line in lines:
        cells = ["-" if cell is None else str(cell) for cell in line]
        rows.append(cells + [""] * (len(names) - len(cells)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
