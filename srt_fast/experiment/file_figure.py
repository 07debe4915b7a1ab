"""The figure of a grid's file: a row for each place, with accuracy, vote and labels over steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from srt_fast.experiment.figure import STYLE, accuracy, draw_band, moving_mean, style_axes
from srt_fast.experiment.grid import Arm
from srt_fast.experiment.measure import FinishedRun
from srt_fast.run.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

LINES = list(itertools.product(("-", "--", ":"), (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)))
"""Style and colour of the arms, in their order. More arms begin again."""
PANELS = {
    "pass1": "Held-out pass@1",
    "vote_accuracy": "Accuracy of the vote, in training",
    "label_accuracy": "Accuracy of the labels that train",
}


def file_figure(arms: Sequence[Arm], runs: Sequence[FinishedRun]) -> Figure:
    """Each line is an arm: the mean over seeds, in the range from the lowest to the highest."""
    names = list(dict.fromkeys(arm.name for arm in arms))
    lines = dict(zip(names, itertools.cycle(LINES), strict=False))
    places = list(dict.fromkeys(arm.place for arm in arms))
    with matplotlib.rc_context(STYLE):
        legend_rows = -(-len(names) // 5)
        height = 3.1 * len(places) + 0.4 + 0.25 * legend_rows
        figure = Figure(figsize=(12.5, height), layout="constrained")
        grid = figure.subplots(len(places), len(PANELS), sharex="row", squeeze=False)
        for row, place in zip(grid, places, strict=True):
            row[0].set_ylabel(place)
            for axes, (metric, title) in zip(row, PANELS.items(), strict=True):
                style_axes(axes, title)
                axes.set_xlabel("step")
                for name, (linestyle, colour) in lines.items():
                    here = [run for run in runs if (run.arm, run.place) == (name, place)]
                    if metric == "pass1":
                        curves = [accuracy(run) for run in here]
                    else:
                        curves = [moving_mean(run, metric) for run in here]
                    draw_band(axes, curves, colour, name, linestyle)
        handles = [
            Line2D([], [], label=name, linestyle=linestyle, color=colour)
            for name, (linestyle, colour) in lines.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
        return figure
