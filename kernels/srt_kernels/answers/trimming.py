"""

tage 3, trimming: `x=5` becomes `5`, `5cm^{2}.` becomes `5`, `2,220` becomes `2220` where there is
no bracket.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from srt_kernels.answers.spelling import MARK
from srt_kernels.answers.stage import ALNUM, COPY, DROP, Action, Stage

SIGNED = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)"
"""A decimal number with or without a sign."""

_UNIT = "|".join(
    [
        "deg|degrees?|rad|radians?|units?|cents?|dollars?|euros?|percent|hours?|hrs?|minutes?|min",
        "seconds?|sec|days?|weeks?|months?|years?|mm|cm|km|kg|ml|mph|ft",
        "(milli|centi|kilo)?met(er|re)s?|inch(es)?|feet|foot|yards?|miles?|grams?",
        "kilograms?|pounds?|lit(er|re)s?|gallons?|points?|people|ways?",
    ]
)
_COMPOUND = rf"(square|sq|cubic)?[ .]?({_UNIT})((/|per)({_UNIT}|h|s))?(^{{[23]}})?[ .]*"
_UNITS = f"{_COMPOUND}({_COMPOUND})?$"
_THOUSANDS = "[1-9][0-9]?[0-9]?(,[0-9][0-9][0-9])+"
_RATIONAL = rf"{SIGNED}(/{SIGNED})?|[+-]?\\frac{{{SIGNED}}}{{{SIGNED}}}"
_PATTERNS = [
    ("end", r"[ .]*$", 0),
    ("definition", "[A-Za-z]=[^=]+$", 0),
    ("membership", rf"[A-Za-z]{MARK}\\in", 0),
    ("function", r"[A-Za-z]\([A-Za-z]\)=[^=]+$", 0),
    ("enclosed", rf"\(([A-Za-z]|{_RATIONAL})\)[ .]*$", 0),
    ("last bracket", r"\)[ .]*$", 0),
    ("unit apart", " " + _UNITS, 0),
    ("unit", _UNITS, 0),
    ("thousands", _THOUSANDS + "([^0-9,]|$)", 1),
    ("thousands", _THOUSANDS + ", ", 2),
    ("value", f"[0-9]+|}}|{_THOUSANDS}", 0),
    ("pi", r"\\pi", 0),
    ("comma", r",|\.+", 0),
    ("space", " +", 0),
    ("other", r"\\[A-Za-z]+|[A-Za-z]+|.", 0),
]
_DROPPED_AT_START = {  # kind -> how many bytes go; 0: all
    "space": 0,
    "definition": len("x="),
    "function": len("f(x)="),
    "membership": len(f"x{MARK}\\in"),
    "enclosed": len("("),
}


class State(NamedTuple):
    """What came before a match."""

    bracket: bool  # whether the answer has a bracket, which stage 2 knows
    enclosed: bool  # whether the answer is one letter or number in brackets; they go
    last: str  # the kind of the match before, "start", or "" where it does not matter


def trimming_stage() -> Stage:
    last = ("start", "value", "pi", "comma", "space", "other", "")
    states = itertools.product((False, True), (False, True), last)
    return Stage(_PATTERNS, states, _action, _first_state)


def _first_state(previous: tuple) -> State:
    """previous: the last state of stage 2."""
    _, _, _, bracket = previous
    return State(bracket, False, "start")


def _action(bracket: bool, enclosed: bool, last: str, kind: str) -> Action:
    if _is_dropped_at_end(enclosed, last, kind):
        return Action(State(bracket, enclosed, ""), DROP)
    if last == "start" and kind in _DROPPED_AT_START:
        state = State(bracket, enclosed or kind == "enclosed", "start")
        return Action(state, DROP, take=_DROPPED_AT_START[kind])
    if kind == "thousands":
        is_list = bracket or last == "comma"
        return Action(State(bracket, enclosed, "value"), COPY if is_list else ALNUM)
    if kind in ("value", "pi", "comma", "space", "other"):
        return Action(State(bracket, enclosed, kind))
    return Action(State(bracket, enclosed, ""), take=1)


def _is_dropped_at_end(enclosed: bool, last: str, kind: str) -> bool:
    r"""

    paces and full stops, a unit after a number or after a space and `\pi`, the bracket around one
    value.
    """
    if kind == "last bracket":
        return enclosed
    return kind == "end" or (kind, last) in (("unit", "value"), ("unit apart", "pi"))
