r"""Stage 5, numbers: `\frac{2}{4}` becomes `1/2`, alone or between the commas and brackets of a
tuple, set or matrix.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from srt_kernels.answers.form.symbols import LINE, MARK
from srt_kernels.answers.form.trimming import SIGNED
from srt_kernels.answers.stage import COPY, DROP, NUMBER, Action, Stage

_POWER_OF_TEN = "10^({[+-]?[0-9]+}|[+-]?[0-9]+)"
_NUMBER = "|".join(
    [
        SIGNED,
        f"{SIGNED}/{SIGNED}",
        rf"[+-]?\\frac{{{SIGNED}}}{{{SIGNED}}}",
        r"[+-]?[0-9]+(\\frac{[0-9]+}{[0-9]+}| [0-9]+/[0-9]+)",  # mixed
        f"[+-]?{_POWER_OF_TEN}",
        rf"{SIGNED}([eE][+-]?[0-9]+|(\\times|\\cdot|\*){_POWER_OF_TEN})",
    ]
)
_PATTERNS = [
    ("end", "(, *)?$", 0),
    ("comma", ", *", 0),
    ("not a number", r"[+-]?[0-9]+\.\(", 1),  # 0.(3)
    ("number", rf"({_NUMBER})([,;()\[\]&=<>{LINE}{MARK}]|$)", 1),
    ("plus", r"\+", 0),
    ("separator", rf"[;(\[&=<>{LINE}]", 0),
    ("mark", MARK, 0),
    ("command", r"\\[A-Za-z]+ ?|\\begin{[a-z*]*}|\\[^}]", 0),
    ("inside", r"[0-9]+|[A-Za-z]+|\\end{[a-z*]*}|\\}|.", 0),
]


class State(NamedTuple):
    """What came before a match."""

    bracket: bool  # whether the answer has a bracket, which stage 2 knows
    place: str  # "start": a number may begin here; "mark": after a MARK; "inside" of other things


def numbers_stage() -> Stage:
    states = itertools.product((False, True), ("start", "inside", "mark"))
    return Stage(_PATTERNS, states, _action, _first_state)


def _first_state(previous: tuple) -> State:
    """previous: the last state of stage 4."""
    bracket, _, _ = previous
    return State(bracket, "start")


def _action(bracket: bool, place: str, kind: str) -> Action:
    if kind == "end":
        return Action(State(bracket, place), DROP)
    if kind == "comma":
        return Action(State(bracket, "start"), DROP, prefix="," if bracket else ", ")
    if kind == "mark":
        return Action(State(bracket, "mark"), DROP)
    if kind == "plus" and place == "start":
        return Action(State(bracket, "start"), DROP)
    separates = kind == "separator" or kind == "command" and place == "mark"
    body = NUMBER if kind == "number" and place == "start" else COPY
    return Action(State(bracket, "start" if separates else "inside"), body)
