r"""

tage 2, structure: `\frac12` becomes `\frac{1}{2}`, `{x}+1` becomes `x+1`, `2{,}220` becomes `2220`;
spaces go.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from srt_kernels.answers.spelling import COMMA, MARK, THIN, WRAP
from srt_kernels.answers.stage import (
    ALNUM,
    ARGUMENT,
    CLOSE_KINDS,
    DROP,
    INVISIBLE,
    VISIBLE,
    Action,
    Stage,
)

_GROUPED = rf"[1-9][0-9]?[0-9]?([{COMMA}{THIN}][0-9][0-9][0-9])+"  # thousands
_PRODUCT = rf"(\\cdot|\*)[ {THIN}]*"
_TIMES = rf"\\times[ {THIN}]*"
_FACTOR = "[A-DF-Za-df-z(]"  # no e: `2*e3` would become `2e3`
_COMMAND_FACTOR = r"\\[a-eg-z]"  # no \frac: `2*\frac12` would become `2\frac12`
_PATTERNS = [
    ("end", "$", 0),
    ("space", f"[ {THIN}]+", 0),
    ("open", "{", 0),
    ("wrap", WRAP, 0),
    ("close", "}", 0),
    ("fraction", r"\\frac", 0),
    ("root", r"\\sqrt", 0),
    ("script", "[_^]", 0),
    ("angle", r"\\[lr]angle", 0),
    ("product", f"{_PRODUCT}{_FACTOR}", 1),
    ("product", f"{_PRODUCT}{_COMMAND_FACTOR}", 2),
    ("times", f"{_TIMES}{_FACTOR}", 1),
    ("times", f"{_TIMES}{_COMMAND_FACTOR}", 2),
    ("last row", rf"\\\\[ {THIN}]*\\end", 4),
    ("relation", r"\\(cup|cap|in|le|ge|ne|lt|gt|pm|to)", 0),
    ("environment", r"\\(begin|end){[a-z*]*}", 0),
    ("command", r"\\[A-Za-z]+", 0),
    ("set", r"\\[{}]", 0),
    ("row", r"\\\\", 0),
    ("grouped", _GROUPED, 0),
    ("not grouped", _GROUPED + "[0-9]", 0),
    ("digits", "[0-9]+", 0),
    ("letter", "[A-Za-z]", 0),
    ("point", r"\.", 0),
    ("comma", f"[,{COMMA}]", 0),
    ("bracket", r"[([)]", 0),
    ("last bracket", r"\]", 0),
    ("other", r"\\.|.", 0),
]

_SCRIPT_ARGUMENT = 3  # the argument of ^ or _, which takes all digits that follow
_ARGUMENTS = {"fraction": 2, "root": 1, "script": _SCRIPT_ARGUMENT}
_NUMERALS = ("digits", "grouped", "not grouped", "point")


class State(NamedTuple):
    """What came before a match."""

    pending: int  # arguments that are yet to come, or _SCRIPT_ARGUMENT
    last: str  # "numeral", "command", "comma", "closed" or "" for other things
    gap: bool  # whether spaces were dropped since `last`
    bracket: bool  # whether the answer has a bracket so far


def structure_stage() -> Stage:
    last = ("", "numeral", "command", "comma", "closed")
    states = itertools.product(range(4), last, (False, True), (False, True))
    return Stage(
        _PATTERNS, states, _action, first_state=lambda previous: State(0, "", False, False)
    )


def _action(pending: int, last: str, gap: bool, bracket: bool, kind: str) -> Action:
    state = State(pending, last, gap, bracket)
    if kind in ("end", "close"):  # the brace that closes is invisible
        return Action(state, DROP)
    if _is_dropped_like_space(kind, last):
        return Action(state._replace(gap=True), DROP)
    if kind in ("open", "wrap"):
        if pending or kind == "open" and last in ("command", "closed"):
            push = ARGUMENT if pending == 2 else VISIBLE
            return _write(state, kind, body=DROP, prefix="{", push=push)
        return Action(state, DROP, push=INVISIBLE)
    if kind in CLOSE_KINDS:
        return _write(state, kind, "closed", pending=1 if kind == "close argument" else 0)
    if pending and kind in ("letter", "command", "digits", "grouped", "not grouped"):
        return _write_argument(state, kind)
    if kind in _ARGUMENTS:
        return _write(state, kind, "" if kind == "script" else "command", _ARGUMENTS[kind])
    if kind in ("relation", "environment", "set", "row"):
        last = {"relation": "command", "environment": "closed"}.get(kind, "")
        return _write(state, kind, last, prefix=_kept_space(state, kind) + MARK)
    if kind == "comma":
        return _write(state, kind, "comma", body=DROP, prefix="" if last == "comma" else ",")
    if kind == "times":
        return _write(state, kind, "command", take=len("\\times"))
    if kind in ("command", "angle"):
        return _write(state, kind, "command")
    if kind == "last bracket":
        return _write(state, kind, "closed")
    if kind == "grouped":
        return _write(state, kind, "numeral", body=ALNUM)
    if kind == "not grouped":
        return _write(state, kind, "numeral", take=1)
    return _write(state, kind, "numeral" if kind in _NUMERALS else "")


def _is_dropped_like_space(kind: str, last: str) -> bool:
    r"""Spaces, signs of a product, and the `\\` after the last row of a matrix."""
    if kind == "times":
        return last in ("numeral", "closed")
    return kind in ("space", "product", "last row")


def _write(
    state: State,
    kind: str,
    last: str = "",
    pending: int = 0,
    *,
    prefix: str | None = None,
    **output,
) -> Action:
    """The action that writes a match.

    Without a prefix, the space before the match is written if it is kept.
    """
    if prefix is None:
        prefix = _kept_space(state, kind)
    bracket = state.bracket or kind in ("set", "angle", "bracket", "last bracket")
    next_state = State(pending, last, kind == "comma" and state.gap, bracket)
    return Action(next_state, prefix=prefix, **output)


def _write_argument(state: State, kind: str) -> Action:
    """

    he action for an argument without braces: a letter, a command, one digit, or all digits after ^
    and _.
    """
    is_whole = kind in ("letter", "command") or (
        kind == "digits" and state.pending == _SCRIPT_ARGUMENT
    )
    pending = 1 if state.pending == 2 else 0
    take = 0 if is_whole else 1
    return _write(state, kind, "closed", pending, prefix="{", suffix="}", take=take)


def _kept_space(state: State, kind: str) -> str:
    """A space stays after a comma, between two numbers, and between a command and a letter."""
    between_numbers = state.last == "numeral" and kind in _NUMERALS
    after_gap = state.gap and (state.last == "comma" or between_numbers)
    after_command = state.last == "command" and kind == "letter"
    return " " if after_gap or after_command else ""
