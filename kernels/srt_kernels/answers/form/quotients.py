r"""Stage 4, quotients: `2\pi/3` becomes `\frac{2\pi}{3}`, `(x+1)/2` becomes `\frac{x+1}{2}`,
`\ln(2)` becomes `\ln2`, and `x^\frac{1}{2}` becomes `x^{\frac{1}{2}}`.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from srt_kernels.answers.form.symbols import LINE, MARK
from srt_kernels.answers.stage import DROP, Action, Stage

_ARGUMENT = "{([^{}/]|{[^{}/]*})*}"
_SCRIPT = f"[_^]{_ARGUMENT}"
_SCRIPTS = f"({_SCRIPT})*"
_BRACKET = r"\([^()/]*\)"
_ATOM = rf"[0-9]+(\.[0-9]+)?|[A-Za-z]|\\[A-Za-z]+ ?(\[[0-9a-z]*\])?({_ARGUMENT})?({_ARGUMENT})?"
_FACTOR = f"({_ATOM})!?{_SCRIPTS}|{_BRACKET}[_^]{_ARGUMENT}"
_TERM = f"({_FACTOR}|{_BRACKET})+"
_END = rf"([+\-,;)\]}}=<>&|{LINE}{MARK}]|$)"
"""What may follow a denominator: `1/2x` has two readings, and stays."""

_MINUS_OVER = rf"\\frac{{-([^{{}}/+\-{MARK}]|{{[^{{}}/+\-{MARK}]*}})*}}"  # before no sum, no \pm
_NUMBER = r"[0-9]+(\.[0-9]+)?"
_TOKEN = rf"{_NUMBER}|\\[A-Za-z]+"
_FUNCTION = r"\\(ln|log|sin|cos|tan|cot|exp)"
_PATTERNS = [
    ("end", "$", 0),
    ("bracket over", f"{_BRACKET}/({_FACTOR}|{_BRACKET}){_END}", 0),
    ("term over", f"{_TERM}/({_FACTOR}|{_BRACKET}){_END}", 0),
    ("minus over", f"{_MINUS_OVER}{_ARGUMENT}{_END}", 0),
    ("function (", rf"{_FUNCTION}{_SCRIPTS}\(({_TOKEN})\){_END}", 0),
    ("function (", rf"{_FUNCTION}({_SCRIPT})+\([A-Za-z]\){_END}", 0),
    ("function ( letter", rf"{_FUNCTION}\([A-Za-z]\){_END}", 0),
    ("function {", rf"{_FUNCTION}{{({_TOKEN})}}{_END}", 0),
    ("function { letter", rf"{_FUNCTION}{{[A-Za-z]}}{_END}", 0),
    ("factor", f"({_FACTOR}){_END}", 1),
    ("bracketed fraction", r"\([0-9]+/[0-9]+\)([^\^_!0-9(]|$)", 0),
    ("mixed number", "[0-9]+ [0-9]+/[0-9]+", 0),
    ("script over", rf"[_^]\\frac{_ARGUMENT}{_ARGUMENT}{_END}", 0),
    ("/", "/", 0),
    ("(", r"\(", 0),
    (")", r"\)", 0),
    ("{", "{", 0),
    ("}", "}", 0),
    ("sign", r"[+\-]", 0),
    ("separator", rf"[,;\[=<>&|{LINE}]|\\begin{{[a-z*]*}}", 0),
    ("mark", MARK, 0),
    ("space", " ", 0),
    ("other", rf"{_NUMBER}|\\[A-Za-z]+ ?|\\[^A-Za-z]|.", 0),
]
_BEGINNINGS = {"(": "start", "{": "start", "separator": "start", "sign": "signed", "mark": "mark"}
"""Kind -> the place after it, where a value may begin."""


class State(NamedTuple):
    """What came before a match."""

    bracket: bool  # whether the answer has a bracket, which stage 2 knows
    place: str  # "start" of a value, "signed", after a "mark", "inside", "after /", or a part
    drops: bool  # whether the next `)` goes


_PARTS = {  # of a quotient: its name -> the kind that ends it, what that writes, the next place
    "numerator": ("/", "}{", "denominator"),
    "numerator in bracket": (")", "", "numerator"),
    "denominator in bracket": (")", "}", "inside"),
    "function (": ("(", "", "argument )"),
    "function ( letter": ("(", " ", "argument )"),
    "function {": ("{", "", "argument }"),
    "function { letter": ("{", " ", "argument }"),
    "argument )": (")", "", "inside"),
    "argument }": ("}", "", "inside"),
}
"""Parts of a quotient and of a function. Their other bytes are copied."""


def quotients_stage() -> Stage:
    places = ("start", "signed", "mark", "inside", "after /", "denominator", "script", *_PARTS)
    states = itertools.product((False, True), places, (False, True))
    return Stage(_PATTERNS, states, _action, _first_state)


def _first_state(previous: tuple) -> State:
    """previous: the last state of stage 3."""
    bracket, *_ = previous
    return State(bracket, "start", False)


def _action(bracket: bool, place: str, drops: bool, kind: str) -> Action:
    state = State(bracket, place, drops)
    if kind == "end":
        return Action(state, DROP)
    if place in _PARTS:
        ending, text, next_place = _PARTS[place]
        if kind == ending:
            return Action(state._replace(place=next_place), DROP, prefix=text)
        return Action(state, take=1)
    inside = state._replace(place="inside")
    if place == "script" or place == "denominator" and kind == "factor":
        return Action(inside, suffix="}")
    if place == "denominator":
        return Action(state._replace(place="denominator in bracket"), DROP, take=1)
    if place in ("start", "signed") and (action := _part_action(state, kind)):
        return action
    if kind == "script over":
        return Action(state._replace(place="script"), suffix="{", take=1)
    if kind == ")" and drops:
        return Action(inside._replace(drops=False), DROP)
    if kind == "space":
        return Action(state)
    if kind in _BEGINNINGS:
        return Action(state._replace(place=_BEGINNINGS[kind]))
    if kind == "/":
        return Action(state._replace(place="after /"))
    return _copy(state, kind)


def _part_action(state: State, kind: str) -> Action | None:
    """The action where a value begins; None where the kind does not matter there."""
    match kind:
        case "term over":
            return Action(state._replace(place="numerator"), prefix="\\frac{", take=1)
        case "bracket over":
            place = "numerator in bracket"
            return Action(state._replace(place=place), DROP, prefix="\\frac{", take=1)
        case "bracketed fraction":
            return Action(state._replace(place="start", drops=True), DROP, take=1)
        case "minus over" if state.place == "start":
            taken = len("\\frac{-")
            return Action(state._replace(place="start"), DROP, prefix="-\\frac{", take=taken)
    return None


def _copy(state: State, kind: str) -> Action:
    if kind in _PARTS:  # a function
        return Action(state._replace(place=kind), take=1)
    if kind in ("term over", "bracket over", "bracketed fraction", "minus over"):
        return Action(state._replace(place="inside"), take=1)
    after_mark = state.place == "mark" and kind == "other"
    return Action(state._replace(place="start" if after_mark else "inside"))
