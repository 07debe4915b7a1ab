"""The experiment's tables. Their rows are those of page.findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srt_fast.experiment.document import Table
from srt_fast.experiment.grid import GROUPS
from srt_fast.experiment.measure import ALARM

Row = dict[str, Any]
Cells = list[Any]

FAILURES = ("collapses", "falls", "ends_below_start")
"""What may happen to a run's accuracy."""
FILE_FAILURES = ("falls", "falls_below_start")
"""The same in a grid of a file. There the second one is the collapse: not all rewards go to 1."""


def rise(rows: list[Row]) -> Table:
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


def arms(rows: list[Row]) -> Table:
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


def _arm_cells(row: Row, failures: tuple[str, ...] = FAILURES) -> Cells:
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
        *(f"{row[name]}/{runs}" for name in failures),
        None if seconds is None else f"{seconds:.2f}",
    ]


def file_arms(rows: list[Row]) -> Table:
    """The arms of a grid's file in one place."""
    header = (
        "arm | | runs | start | rise | peak | end | maj@k at the end | falls | collapses | time "
        "| tokens a step"
    )
    return _table(header, [_file_arm_cells(row) for row in rows])


def _file_arm_cells(row: Row) -> Cells:
    name, note, runs, *rest = _arm_cells(row, FILE_FAILURES)
    if not row["runs"]:
        return [name, note, runs]
    tokens = row["tokens_per_step"]
    return [
        name,
        note,
        runs,
        spread(row["start"]),
        spread(row["rise"]),
        *rest,
        None if tokens is None else f"{tokens:,.0f}",
    ]


def labels(rows: list[Row]) -> Table:
    """The accuracy of the vote and of the labels after each quarter of a run."""
    quarters = ("25 %", "50 %", "75 %", "the end")
    header = ["arm", *(f"{who}, {when}" for who in ("vote", "labels") for when in quarters)]
    cells = [
        [f"`{row['arm']}`", *map(points, row["vote"]), *map(points, row["label"])] for row in rows
    ]
    return Table(header, cells)


def turns(rows: list[Row]) -> Table:
    """What later turns do, in points: at the start and at the end of the runs."""
    header = (
        "arm | runs | verdicts right, start | end | gv gap, start | end | first answers, end "
        "| final answers, end | gain of later turns | labels right | of kept prompts"
    )
    lines = [
        [
            f"`{row['arm']}`",
            row["runs"],
            *map(points, row["verdict_accuracy"]),
            *map(points, row["gv_gap"]),
            points(row["acc@first"][1]),
            points(row["acc@final"][1]),
            None if row["gain"] is None else spread(row["gain"]),
            points(row["label_accuracy"]),
            points(row["kept_label_accuracy"]),
        ]
        for row in rows
    ]
    return _table(header, lines)


def failures(rows: list[Row]) -> Table:
    """In how many runs of all places each arm fails."""
    return _table(
        "arm | runs | falls | collapses",
        [
            [
                f"`{row['arm']}`",
                row["runs"],
                *(f"{row[name]}/{row['runs']}" for name in FILE_FAILURES),
            ]
            for row in rows
            if row["runs"]
        ],
    )


def leads(name: str, rows: list[Row]) -> Table:
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


def early_stopping(rows: list[Row]) -> Table:
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


def runs(rows: list[Row]) -> Table:
    header = (
        "arm | seed | start | peak | at step | end | pseudo-reward | commonest answer "
        "| label accuracy | collapse at | fall at | first alarm | monitor | s"
    )
    lines = [
        [
            f"`{run['place']}-{run['arm']}`" if run["place"] else f"`{run['arm']}`",
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


def _table(header: str, lines: Sequence[Cells]) -> Table:
    return Table([name.strip() for name in header.split("|")], lines)
