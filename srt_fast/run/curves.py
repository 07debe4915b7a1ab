"""The figures of a run: its curves, and bars of where a step's time goes and of its limits.

The PNG has the first six panels in one figure. The report has one SVG per panel.

Draws on Figure objects, as the figures of srt_fast/experiment do: no pyplot state and no display is
touched. No other room imports matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from srt_fast.errors import printable
from srt_fast.run.panels import Panel, Series, panels_of

Row = dict[str, Any]
Curve = tuple[np.ndarray, np.ndarray]  # steps, values

# Legible on white and on near-black.
BLUE = "#3b82c4"
ORANGE = "#e0861a"
GREEN = "#2a9d74"
PURPLE = "#9a68c8"
GREY = "#8a8f98"
RED = "#d1603d"

_SMOOTHED_STEPS = 40  # curves of so many training steps are smoothed
_SMALLEST = 1e-45  # of fp32; a logarithmic axis overflows on some smaller numbers
_TEXT_COLOUR = "#010203"  # a placeholder: the SVG takes the page's text colour instead
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_SVG_STYLE: dict[Any, Any] = _STYLE | {
    "svg.fonttype": "none",
    "text.color": _TEXT_COLOUR,
    "axes.labelcolor": _TEXT_COLOUR,
    "axes.edgecolor": _TEXT_COLOUR,
    "xtick.color": _TEXT_COLOUR,
    "ytick.color": _TEXT_COLOUR,
}


def overview(rows: list[Row], title: str) -> Figure:
    """The PNG: the first six panels."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(13, 7), layout="constrained")
        # Fonts refuse lone surrogates.
        figure.suptitle(printable(title), parse_math=False, fontsize=12, fontweight="bold")
        for axes, panel in zip(figure.subplots(2, 3).flat, panels_of(rows)[:6], strict=True):
            _draw(axes, panel, rows)
        return figure


def panel_svg(panel: Panel, rows: list[Row]) -> str:
    """One panel as an <svg> element. Its text and axes take the page's colour."""
    with matplotlib.rc_context(_svg_style(panel.title)):
        figure = Figure(figsize=(4.6, 3), layout="constrained")
        _draw(figure.subplots(), panel, rows)
        return _as_element(figure)


def figure_svg(draw: Callable[[], Figure], salt: str) -> str:
    """A figure as an <svg> element. Its text and axes take the page's colour.

    salt: keeps the ids of the element apart from those of others on the page.
    """
    with matplotlib.rc_context(_svg_style(salt)):
        return _as_element(draw())


def bar_svg(parts: dict[str, float]) -> str:
    """Up to six parts of a time, in seconds, as one stacked bar.

    The legend has seconds and percent. Parts of zero seconds are left out.
    """
    total = sum(parts.values())
    colours = dict(zip(parts, (BLUE, PURPLE, RED, ORANGE, GREEN, GREY), strict=False))
    positive_parts = {name: seconds for name, seconds in parts.items() if seconds}
    with matplotlib.rc_context(_svg_style("bar")):
        figure = Figure(figsize=(4.6, 0.6 + 0.2 * len(positive_parts)), layout="constrained")
        axes = figure.subplots()
        start = 0.0
        for name, seconds in positive_parts.items():
            label = f"{name}: {seconds:.2f} s, {100 * seconds / total:.1f} %"
            axes.barh(0, seconds, left=start, color=colours[name], label=label)
            start += seconds
        axes.margins(0)
        axes.set_axis_off()
        figure.legend(loc="outside lower left", frameon=False)
        return _as_element(figure)


def limits_svg(bars: dict[str, tuple[float, float]]) -> str:
    """A stacked bar for each part of a step, from its (seconds, limit): the limit, and what is
    above it.
    """
    with matplotlib.rc_context(_svg_style("limits")):
        figure = Figure(figsize=(4.6, 0.9 + 0.3 * len(bars)), layout="constrained")
        axes = figure.subplots()
        names = list(bars)
        limits = [limit for _, limit in bars.values()]
        above = [max(0.0, seconds - limit) for seconds, limit in bars.values()]
        axes.barh(names, limits, color=BLUE, label="limit at the measured rate")
        axes.barh(names, above, left=limits, color=GREY, alpha=0.5, label="above the limit")
        axes.invert_yaxis()
        axes.margins(x=0)
        axes.set_xlabel("seconds a step")
        figure.legend(loc="outside upper left", frameon=False, ncols=2)
        return _as_element(figure)


def _draw(axes: Axes, panel: Panel, rows: list[Row]) -> None:
    """Draw one panel."""
    curves = []
    for series, colour in zip(panel.series, (BLUE, ORANGE, GREEN), strict=False):
        curves.append(_draw_curve(axes, series, colour, rows))
    if panel.shaded:
        first, second = panel.shaded
        _shade(axes, curves[first], curves[second])
    if panel.marks_alarms:
        _mark_alarms(axes, rows)
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel(panel.ylabel)
    if not any(len(values) for _, values in curves):
        _write_no_data(axes)
        return
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if panel.is_logarithmic and any((values > 0).any() for _, values in curves):
        axes.set_yscale("log", nonpositive="mask")
    axes.grid(alpha=0.2)
    # On a logarithmic axis three distant curves leave no room for the legend.
    axes.margins(y=0.45 if panel.is_logarithmic else 0.12)
    if len(panel.series) > 1:
        axes.legend(frameon=False, fontsize="small")


def _draw_curve(axes: Axes, series: Series, colour: str, rows: list[Row]) -> Curve:
    """Draw one curve and return it.

    A long training curve is smoothed. A pale curve below it shows the data.
    """
    kind, name, label = series
    steps, values = _curve(rows, kind, name)
    is_long = len(values) >= _SMOOTHED_STEPS
    if is_long and kind == "train":
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        values = _smooth(values)
    marker = "o" if kind == "eval" or not is_long else None
    if len(values):
        axes.plot(
            steps, values, color=colour, label=label, linewidth=1.7, marker=marker, markersize=3
        )
    return steps, values


def _shade(axes: Axes, first: Curve, second: Curve) -> None:
    steps, values = first
    _, second_values = second
    if len(values) and len(second_values):
        axes.fill_between(
            steps, values, second_values, color=BLUE, alpha=0.15, linewidth=0, label="gap"
        )


def _mark_alarms(axes: Axes, rows: list[Row]) -> None:
    alarms = [row["step"] for row in rows if row.get("event") == "alarm"]
    for number, step in enumerate(alarms):
        label = "alarm" if number == 0 else None  # once in the legend
        axes.axvline(step, color=GREY, linewidth=1, linestyle="--", label=label)


def _write_no_data(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, alpha=0.6)


def _svg_style(salt: str) -> dict[Any, Any]:
    """The salt keeps the ids of an element apart from those of others on the page."""
    style = dict(_SVG_STYLE)
    style["svg.hashsalt"] = salt
    return style


def _as_element(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_TEXT_COLOUR, "currentColor")


def _curve(rows: list[Row], kind: str, name: str) -> Curve:
    """Steps and values of one metric.

    A missing or null value is NaN, which leaves a gap in the line. Without values both are empty.
    A value below _SMALLEST is 0.
    """
    points = [(row["step"], row.get(name)) for row in rows if row.get("kind") == kind]
    steps = np.array([step for step, _ in points], dtype=float)
    values = np.array([np.nan if value is None else value for _, value in points], dtype=float)
    values[np.abs(values) < _SMALLEST] = 0
    if not np.isfinite(values).any():
        return steps[:0], values[:0]
    return steps, values


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a twentieth of the run. Leaves out NaN."""
    window = np.ones(max(1, len(values) // 20))
    is_known = np.isfinite(values)
    counts = np.convolve(is_known, window, "same")
    sums = np.convolve(np.where(is_known, values, 0.0), window, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
