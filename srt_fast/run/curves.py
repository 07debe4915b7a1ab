"""The figures of a run: its curves (one figure with the first six panels, one SVG per panel for the report) and a bar.

Like experiment/figure.py, the other file that imports matplotlib, it draws on Figure objects: no global pyplot state and no
display is touched.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Row = dict[str, Any]
Series = tuple[str, str, str]  # kind of row, name of the metric, label

BLUE, ORANGE, GREEN = (
    "#3b82c4",
    "#e0861a",
    "#2a9d74",
)  # legible on white and on near-black, as the next two are
PURPLE, GREY = "#9a68c8", "#8a8f98"
_INK = "#010203"  # stands for the page's text colour in an SVG
_RC = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_SVG_RC = {
    "svg.fonttype": "none",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
}
_SVG_RC |= {"xtick.color": _INK, "ytick.color": _INK}


@dataclass(frozen=True)
class Panel:
    """One set of axes: its curves, the pair of curves (by place) whose distance is shaded, whether y is logarithmic, and whether
    the monitor's alarms are marked."""

    title: str
    ylabel: str
    series: tuple[Series, ...]
    shade: tuple[int, int] | None = None
    log: bool = False
    alarms: bool = False


PANELS = (  # the PNG has the first six
    Panel(
        "Accuracy",
        "fraction correct",
        (
            ("eval", "pass1", "held-out pass@1"),
            ("eval", "maj", "held-out majority"),
            ("train", "pass1", "training samples"),
        ),
    ),
    Panel(
        "Pseudo-reward against the truth",
        "fraction of samples",
        (
            ("train", "pseudo_reward", "pseudo-reward"),
            ("train", "pass1", "truly correct"),
            ("train", "label_accuracy", "majority label right"),
        ),
        shade=(0, 1),
    ),
    Panel(
        "Agreement and collapse",
        "fraction",
        (
            ("train", "vote_share", "vote share"),
            ("train", "unanimous", "unanimous prompts"),
            ("train", "top_answer_share", "largest share of one answer"),
        ),
    ),
    Panel(
        "Held-out agreement with the start",
        "fraction of samples",
        (("monitor", "held_out", "monitor's prompts"), ("eval", "pass1", "held-out pass@1")),
        alarms=True,
    ),
    Panel("Entropy", "nats per token", (("train", "entropy", "entropy"),)),
    Panel(
        "Completion length",
        "tokens",
        (("train", "completion_tokens", "training"), ("eval", "completion_tokens", "held-out")),
    ),
    Panel("Gradient norm", "norm before clipping", (("train", "grad_norm", "gradient norm"),)),
    Panel("Loss", "loss", (("train", "loss", "loss"),)),
    Panel(
        "Throughput", "tokens per second", (("train", "tokens_per_second", "tokens per second"),)
    ),
    Panel(
        "Lost completions",
        "fraction of samples",
        (("train", "no_answer", "no answer"), ("train", "truncated", "cut at the limit")),
    ),
    Panel(
        "Log-prob gap, sampler and trainer",
        "nats",
        (
            ("train", "check_mismatch_max", "largest after the sync"),
            ("train", "check_mismatch_mean", "mean after the sync"),
            ("train", "train_mismatch_max", "largest in training"),
        ),
        log=True,
    ),
)


def _draw(axes: Axes, panel: Panel, rows: list[Row]) -> None:
    """One panel. Training curves of 40 steps or more are smoothed over a pale line of what was measured."""
    drawn = []
    for (kind, name, label), colour in zip(panel.series, (BLUE, ORANGE, GREEN), strict=False):
        steps, values = _curve(rows, kind, name)
        if len(values) >= 40 and kind == "train":
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            values = _smooth(values)
        marker = "o" if kind == "eval" or len(values) < 40 else None
        if len(values):
            axes.plot(
                steps, values, color=colour, label=label, linewidth=1.7, marker=marker, markersize=3
            )
        drawn.append((steps, values))
    if panel.shade:
        (steps, upper), (_, lower) = (drawn[place] for place in panel.shade)
        if len(upper) and len(lower):
            axes.fill_between(steps, upper, lower, color=BLUE, alpha=0.15, linewidth=0, label="gap")
    alarms = [row["step"] for row in rows if row.get("event") == "alarm"] if panel.alarms else []
    for number, step in enumerate(alarms):
        axes.axvline(
            step, color=GREY, linewidth=1, linestyle="--", label=None if number else "alarm"
        )
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel(panel.ylabel)
    if not any(len(values) for _, values in drawn):
        axes.set(xticks=[], yticks=[])
        axes.text(
            0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, alpha=0.6
        )
        return
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if panel.log and any((values > 0).any() for _, values in drawn):
        axes.set_yscale("log", nonpositive="mask")
    axes.grid(alpha=0.2)
    axes.margins(
        y=0.45 if panel.log else 0.12
    )  # three far-apart curves leave no room for the legend
    if len(panel.series) > 1:
        axes.legend(frameon=False, fontsize="small")


def overview(rows: list[Row], title: str) -> Figure:
    """The PNG: the first six panels."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(13, 7), layout="constrained")
        title = "".join(
            letter if letter.isprintable() else "?" for letter in title
        )  # fonts refuse lone surrogates
        figure.suptitle(title, parse_math=False, fontsize=12, fontweight="bold")
        for axes, panel in zip(figure.subplots(2, 3).flat, PANELS[:6], strict=True):
            _draw(axes, panel, rows)
        return figure


def svg(panel: Panel, rows: list[Row]) -> str:
    """One panel as an <svg> element; its text and axes take the page's colour."""
    with matplotlib.rc_context(
        _RC | _SVG_RC | {"svg.hashsalt": panel.title}
    ):  # ids unlike those of the other panels
        figure = Figure(figsize=(4.6, 3), layout="constrained")
        _draw(figure.subplots(), panel, rows)
        return _element(figure)


def bar_svg(parts: dict[str, float]) -> str:
    """Five parts of a time, in seconds, as one stacked bar over a legend of seconds and percent; zeros are left out."""
    shown = [
        part
        for part in zip(parts.items(), (BLUE, PURPLE, ORANGE, GREEN, GREY), strict=True)
        if part[0][1]
    ]
    with matplotlib.rc_context(_RC | _SVG_RC | {"svg.hashsalt": "bar"}):
        figure = Figure(figsize=(4.6, 0.6 + 0.2 * len(shown)), layout="constrained")
        axes, total, left = figure.subplots(), sum(parts.values()), 0.0
        for (name, seconds), colour in shown:
            label = f"{name}: {seconds:.2f} s, {100 * seconds / total:.1f} %"
            axes.barh(0, seconds, left=left, color=colour, label=label)
            left += seconds
        axes.margins(0)
        axes.set_axis_off()
        figure.legend(loc="outside lower left", frameon=False)
        return _element(figure)


def _element(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def _curve(rows: list[Row], kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric; a missing or null value is NaN, a gap in the line. Empty if there is no value."""
    points = [(row["step"], row.get(name)) for row in rows if row.get("kind") == kind]
    values = np.array([np.nan if value is None else value for _, value in points], dtype=float)
    steps = np.array([step for step, _ in points], dtype=float)
    return (steps, values) if np.isfinite(values).any() else (steps[:0], values[:0])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a twentieth of the run, which leaves gaps out."""
    window = np.ones(max(1, len(values) // 20))
    known = np.isfinite(values)
    count = np.convolve(known, window, "same")
    total = np.convolve(np.where(known, values, 0.0), window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
