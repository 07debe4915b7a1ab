"""The two figures: the paper's picture of rise and collapse, and the held-out accuracy of every arm in small multiples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from srt_fast.experiment.analysis import ALARM, HACKED, WINDOW, Run, first_warnings
from srt_fast.experiment.grid import GROUPS, Arm
from srt_fast.run.curves import BLUE, GREEN, GREY, ORANGE, PURPLE

Curve = list[tuple[int, float]]

RC = {
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
COLOURS = {"design": BLUE, "action": GREEN, "paper": ORANGE, "curriculum": PURPLE}
COLUMNS = 6
MEANS = (("majority", "-", "the plain vote"), ("oracle", "--", "gold answers"))
BEHIND = {"color": GREY, "linewidth": 1.2, "alpha": 0.8}


def collapse_figure(runs: Sequence[Run]) -> Figure:
    """The vote to its end, and gold answers: accuracy, pseudo-reward, the commonest answer's share of the prompts."""
    pair = [
        ([run for run in runs if run.arm == arm], colour, label)
        for arm, colour, label in (
            ("oracle", BLUE, "gold answers"),
            ("majority_long", ORANGE, "majority vote"),
        )
    ]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12.5, 3.9), layout="constrained")
        panels = figure.subplots(1, 3, sharex=True)
        for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
            _axes(axes, title)
            axes.set_xlabel("step")
            for mine, colour, label in pair:
                _band(
                    axes,
                    [accuracy(run) if name == "pass1" else _smooth(run, name) for run in mine],
                    colour,
                    label,
                )
            for mine, colour, label in pair:
                _alarms(axes, mine, colour, f"first alarm, {label}")
        if starts := [run.summary["pass1_start"] for mine, _, _ in pair for run in mine]:
            panels[0].axhline(statistics.fmean(starts), label="starting model", **LEVEL)
        panels[1].axhline(HACKED, **LEVEL)
        panels[1].annotate(
            f"{HACKED:g}",
            (1, HACKED),
            xycoords=("axes fraction", "data"),
            color=GREY,
            fontsize="small",
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
        )
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=5,
            frameon=False,
        )
        return figure


def designs_figure(arms: Sequence[Arm], runs: Sequence[Run]) -> Figure:
    """A panel per arm with the plain vote's budget, one line a seed; behind, the means of the plain vote and of gold."""
    shown = [arm for arm in arms if arm.group in COLOURS]
    with matplotlib.rc_context(RC):
        rows = -(-len(shown) // COLUMNS)
        figure = Figure(figsize=(2.2 * COLUMNS, 1.9 * rows + 0.6), layout="constrained")
        grid = list(figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flat)
        for axes, arm in zip(grid, shown, strict=False):
            _panel(axes, arm, runs)
        for axes in grid[: len(shown)][-COLUMNS:]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step")
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        figure.supylabel("held-out pass@1", fontsize="medium")
        lines = [
            Line2D([], [], color=colour, label=GROUPS[group]) for group, colour in COLOURS.items()
        ]
        lines += [
            Line2D([], [], label=f"mean of {label}", linestyle=style, **BEHIND)
            for _, style, label in MEANS
        ]
        figure.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False)
        return figure


def accuracy(run: Run) -> Curve:
    return [(row["step"], row["pass1"]) for row in run.kind("eval")]


def _panel(axes: Axes, arm: Arm, runs: Sequence[Run]) -> None:
    _axes(axes, arm.name)
    for name, style, _ in MEANS:
        curves = [accuracy(run) for run in runs if run.arm == name]
        axes.plot(*_across(curves, statistics.fmean), **BEHIND, linestyle=style)
    mine = [run for run in runs if run.arm == arm.name]
    for run in mine:
        steps, values = zip(*accuracy(run), strict=True)
        axes.plot(steps, values, color=COLOURS[arm.group], linewidth=1.4, alpha=0.85)
        axes.plot(
            steps[-1],
            run.summary["pass1_end"],
            color=COLOURS[arm.group],
            marker="o",
            markersize=3.5,
        )
    if not mine:
        axes.text(0.5, 0.5, "not run", ha="center", va="center", transform=axes.transAxes)


def _axes(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.2)


def _band(axes: Axes, curves: Sequence[Curve], colour: str, label: str) -> None:
    """The mean over seeds, and from the lowest to the highest."""
    if not curves:
        return
    steps, mean = _across(curves, statistics.fmean)
    axes.fill_between(
        steps,
        _across(curves, min)[1],
        _across(curves, max)[1],
        color=colour,
        alpha=0.2,
        linewidth=0,
    )
    axes.plot(steps, mean, color=colour, linewidth=1.8, label=label)


def _alarms(axes: Axes, runs: Sequence[Run], colour: str, label: str) -> None:
    steps = [first[ALARM] for first in map(first_warnings, runs) if ALARM in first]
    for number, step in enumerate(steps):
        axes.axvline(
            step, color=colour, linewidth=1, linestyle="--", label=None if number else label
        )


def _across(
    curves: Sequence[Curve], combine: Callable[[list[float]], float]
) -> tuple[list[int], list[float]]:
    """What the curves have at each step, combined; a curve that ended early takes part while it lasts."""
    at: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            at.setdefault(step, []).append(value)
    steps = sorted(at)
    return steps, [combine(at[step]) for step in steps]


def _smooth(run: Run, name: str) -> Curve:
    """The mean of the last WINDOW steps: of 24 prompts a single step says little."""
    rows = [row for row in run.kind("train") if row.get(name) is not None]
    values = [row[name] for row in rows]
    return [
        (row["step"], statistics.fmean(values[max(0, last + 1 - WINDOW) : last + 1]))
        for last, row in enumerate(rows)
    ]
