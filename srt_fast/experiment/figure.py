"""The figures of "collapse": rise and collapse as in the paper, and every arm's accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from srt_fast.experiment.grid import GROUPS, Arm
from srt_fast.experiment.measure import (
    ALARM,
    COLLAPSE_REWARD,
    WINDOW,
    FinishedRun,
    first_warnings,
)
from srt_fast.run.curves import BLUE, GREEN, GREY, ORANGE, PURPLE

Curve = list[tuple[int, float]]

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 130,
}
LEVEL = {"color": GREY, "linewidth": 1, "linestyle": ":", "zorder": 1}
PANELS = {
    "pass1": "Held-out pass@1",
    "pseudo_reward": "Pseudo-reward",
    "top_answer_share": "Prompts with the commonest majority answer",
}
CURVES = {
    "oracle": (BLUE, "gold answers"),
    "majority_long": (ORANGE, "majority vote"),
}
"""Colour and label of the arms in collapse_figure."""
COLOURS = {"reward": BLUE, "action": GREEN, "paper": ORANGE, "curriculum": PURPLE}
COLUMNS = 6
BASELINES: dict[str, tuple[Literal["-", "--"], str]] = {
    "majority": ("-", "the plain vote"),
    "oracle": ("--", "gold answers"),
}
"""Line style and label of the arms whose means stand behind every panel of arms_figure."""
BASELINE = {"color": GREY, "linewidth": 1.2, "alpha": 0.8}


def collapse_figure(runs: Sequence[FinishedRun]) -> Figure:
    """The vote to its end and gold answers, over steps.

    Three panels: accuracy, pseudo-reward, and the share of prompts with the commonest answer.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 3.9), layout="constrained")
        panels = figure.subplots(1, 3, sharex=True)
        for axes, (metric, title) in zip(panels, PANELS.items(), strict=True):
            style_axes(axes, title)
            axes.set_xlabel("step")
            _draw_curves(axes, runs, metric)
        starts = [run.summary["pass1_start"] for run in runs if run.arm in CURVES]
        if starts:
            panels[0].axhline(statistics.fmean(starts), label="starting model", **LEVEL)
        _draw_collapse_level(panels[1])
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=5,
            frameon=False,
        )
        return figure


def arms_figure(arms: Sequence[Arm], runs: Sequence[FinishedRun]) -> Figure:
    """A panel for each arm with the plain vote's budget, with a line for each seed.

    Behind the lines are the means of the plain vote and of gold answers.
    """
    arms = [arm for arm in arms if arm.group in COLOURS]
    with matplotlib.rc_context(STYLE):
        rows = -(-len(arms) // COLUMNS)
        figure = Figure(figsize=(2.2 * COLUMNS, 1.9 * rows + 0.6), layout="constrained")
        grid = list(figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flat)
        for axes, arm in zip(grid, arms, strict=False):
            _draw_arm(axes, arm, runs)
        for axes in grid[: len(arms)][-COLUMNS:]:  # the lowest panel of each column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step")
        for axes in grid[len(arms) :]:
            axes.set_axis_off()
        figure.supylabel("held-out pass@1", fontsize="medium")
        handles = [
            Line2D([], [], color=colour, label=GROUPS[group]) for group, colour in COLOURS.items()
        ]
        for linestyle, label in BASELINES.values():
            handles.append(
                Line2D([], [], label=f"mean of {label}", linestyle=linestyle, **BASELINE)
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        return figure


def _draw_curves(axes: Axes, runs: Sequence[FinishedRun], metric: str) -> None:
    """The bands of all arms in CURVES, then their alarms, so that the legend has this order."""
    for arm, (colour, label) in CURVES.items():
        arm_runs = [run for run in runs if run.arm == arm]
        if metric == "pass1":
            curves = [accuracy(run) for run in arm_runs]
        else:
            curves = [moving_mean(run, metric) for run in arm_runs]
        draw_band(axes, curves, colour, label)
    for arm, (colour, label) in CURVES.items():
        arm_runs = [run for run in runs if run.arm == arm]
        _draw_alarms(axes, arm_runs, colour, f"first alarm, {label}")


def _draw_collapse_level(axes: Axes) -> None:
    axes.axhline(COLLAPSE_REWARD, **LEVEL)
    axes.annotate(
        f"{COLLAPSE_REWARD:g}",
        (1, COLLAPSE_REWARD),
        xycoords=("axes fraction", "data"),
        color=GREY,
        fontsize="small",
        xytext=(2, 0),
        textcoords="offset points",
        va="center",
    )


def _draw_arm(axes: Axes, arm: Arm, runs: Sequence[FinishedRun]) -> None:
    style_axes(axes, arm.name)
    for name, (linestyle, _) in BASELINES.items():
        curves = [accuracy(run) for run in runs if run.arm == name]
        axes.plot(*_combine(curves, statistics.fmean), **BASELINE, linestyle=linestyle)
    arm_runs = [run for run in runs if run.arm == arm.name]
    colour = COLOURS[arm.group]
    for run in arm_runs:
        steps, values = zip(*accuracy(run), strict=True)
        axes.plot(steps, values, color=colour, linewidth=1.4, alpha=0.85)
        axes.plot(steps[-1], run.summary["pass1_end"], color=colour, marker="o", markersize=3.5)
    if not arm_runs:
        axes.text(0.5, 0.5, "not run", ha="center", va="center", transform=axes.transAxes)


def style_axes(axes: Axes, title: str) -> None:
    """Axes of a fraction over steps."""
    axes.set_title(title, loc="left")
    axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.2)


def draw_band(
    axes: Axes, curves: Sequence[Curve], colour: str, label: str, linestyle: str = "-"
) -> None:
    """The mean over seeds, and the range from the lowest to the highest seed."""
    if not curves:
        return
    steps, mean = _combine(curves, statistics.fmean)
    lowest = _combine(curves, min)[1]
    highest = _combine(curves, max)[1]
    axes.fill_between(steps, lowest, highest, color=colour, alpha=0.2, linewidth=0)
    axes.plot(steps, mean, color=colour, linewidth=1.8, label=label, linestyle=linestyle)


def _draw_alarms(axes: Axes, runs: Sequence[FinishedRun], colour: str, label: str) -> None:
    """A vertical line at each run's first alarm. Only the first line has a label."""
    for run in runs:
        step = first_warnings(run).get(ALARM)
        if step is not None:
            axes.axvline(step, color=colour, linewidth=1, linestyle="--", label=label)
            label = ""


def _combine(
    curves: Sequence[Curve], combine: Callable[[list[float]], float]
) -> tuple[list[int], list[float]]:
    """Steps, and the combined values of the curves at each step.

    A curve that ends early takes part until its end.
    """
    values_at: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            values_at.setdefault(step, []).append(value)
    steps = sorted(values_at)
    return steps, [combine(values_at[step]) for step in steps]


def accuracy(run: FinishedRun) -> Curve:
    """Held-out pass@1."""
    return [(row["step"], row["pass1"]) for row in run.rows_of("eval")]


def moving_mean(run: FinishedRun, metric: str) -> Curve:
    """The mean of the last WINDOW steps. A single step has too few prompts to say much."""
    rows = [row for row in run.rows_of("train") if row.get(metric) is not None]
    values = [row[metric] for row in rows]
    curve = []
    for index, row in enumerate(rows):
        window = values[max(0, index + 1 - WINDOW) : index + 1]
        curve.append((row["step"], statistics.fmean(window)))
    return curve
