r"""Stage 2, structure: `\frac12` becomes `\frac{1}{2}`, `{x}+1` becomes `x+1`, `2{,}220` becomes
`2220`, `{1 \over 2}` becomes `\frac{1}{2}`; spaces go.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from srt_kernels.answers.form.symbols import (
    BEGIN,
    BLOCK,
    COMMA,
    GAP,
    LINE,
    MARK,
    OR,
    TEXT,
    THIN,
    WRAP,
)
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
_FACTOR = f"[A-DF-Za-df-z({TEXT}{WRAP}]"  # no e: `2*e3` would become `2e3`
_COMMAND_FACTOR = r"\\[a-eg-z]"  # no \frac: `2*\frac12` would become `2\frac12`
_PATTERNS = [
    ("end", "$", 0),
    ("space", f"[ {THIN}]+", 0),
    ("open", "{", 0),
    ("open over", r"{([^{}]|{[^{}]*})*\\over[^A-Za-z]", 0),
    ("over", r"\\over", 0),
    ("wrap", WRAP, 0),
    ("text", TEXT, 0),
    ("close", "}", 0),
    ("fraction", r"\\frac", 0),
    ("root", r"\\sqrt( *\[[^\[\]{}]*\])?", 0),
    ("script", "[_^]", 0),
    ("minus script", rf"^[ {THIN}]*-[0-9A-Za-z]", 1),
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
    ("foreign letter", r"[\x80-\xff]", 0),
    ("block", BLOCK, 0),
    ("number word", f"{BLOCK}[a-z.]+{BLOCK}", 0),
    ("point", r"\.", 0),
    ("comma", ",", 0),
    ("decimal comma", COMMA, 0),
    ("or", OR, 0),
    ("equals", "=", 0),
    ("line", LINE, 0),
    ("bracket", r"[([)]", 0),
    ("last bracket", r"\]", 0),
    ("other", r"\\.|.", 0),
]

_SCRIPT_ARGUMENT = 3  # the argument of ^ or _, which takes all digits that follow
_AFTER_MINUS = 4  # the same after `^{-`
_ARGUMENTS = {"fraction": 2, "root": 1, "script": _SCRIPT_ARGUMENT, "minus script": _AFTER_MINUS}
_LAST = {
    "command": "command",
    "angle": "command",
    "last bracket": "closed",
    "number word": "closed",
    "relation": "command",
    "environment": "closed",
}
"""Kind -> what it is for the match after it, where that matters."""
_NUMERALS = ("digits", "grouped", "not grouped", "point")


class State(NamedTuple):
    """What came before a match."""

    pending: int  # arguments that are yet to come, _SCRIPT_ARGUMENT or _AFTER_MINUS
    last: str  # "numeral", "command", "comma", "closed", "" for other things, "begin" for nothing
    gap: str  # what was dropped since `last`: "space", "text" (the beginning of a text) or ""
    bracket: bool  # whether the answer has a bracket so far; those of a name before `=` are none
    inequality: bool  # whether the answer has an inequality, which stage 1 knows


def structure_stage() -> Stage:
    last = ("", "numeral", "command", "comma", "closed", "begin")
    gaps = ("", "space", "text")
    states = itertools.product(range(5), last, gaps, (False, True), (False, True))
    return Stage(_PATTERNS, states, _action, _first_state)


def _first_state(previous: tuple) -> State:
    """previous: the last state of stage 1."""
    _, _, _, inequality, _ = previous
    return State(0, "begin", "", False, inequality)


def _action(
    pending: int, last: str, gap: str, bracket: bool, inequality: bool, kind: str
) -> Action:
    state = State(pending, last, gap, bracket, inequality)
    if kind in ("end", "close"):  # the brace that closes is invisible
        return Action(state, DROP)
    if _is_dropped_like_space(kind, last):
        return Action(state._replace(gap=gap or "space"), DROP)
    if kind in ("open", "open over", "wrap", "text"):
        return _open(state, kind)
    if kind in CLOSE_KINDS:
        return _write(state, kind, "closed", pending=1 if kind == "close argument" else 0)
    if pending and kind in ("letter", "command", "digits", "grouped", "not grouped"):
        return _write_argument(state, kind)
    if kind == "minus script":
        return _write(state, kind, "", _AFTER_MINUS, body=DROP, prefix="^{-")
    if kind in _ARGUMENTS:
        return _write(state, kind, "" if kind == "script" else "command", _ARGUMENTS[kind])
    if kind in ("relation", "environment", "set", "row"):
        return _write(state, kind, _LAST.get(kind, ""), prefix=_kept_space(state, kind) + MARK)
    if kind in ("comma", "or", "decimal comma", "over"):
        return _write_sign(state, kind)
    if kind == "times":
        return _write(state, kind, "command", take=len("\\times"))
    if kind == "grouped":
        return _write(state, kind, "numeral", body=ALNUM)
    if kind == "not grouped":
        return _write(state, kind, "numeral", take=1)
    return _write(state, kind, "numeral" if kind in _NUMERALS else _LAST.get(kind, ""))


def _is_dropped_like_space(kind: str, last: str) -> bool:
    r"""Spaces, signs of a product, and the `\\` after the last row of a matrix."""
    if kind == "times":
        return last in ("numeral", "closed")
    return kind in ("space", "product", "last row")


def _open(state: State, kind: str) -> Action:
    if kind == "open over":
        return _write(state, kind, body=DROP, prefix="\\frac{", push=VISIBLE, take=1)
    if state.pending or kind == "open" and state.last in ("command", "closed"):
        push = ARGUMENT if state.pending == 2 else VISIBLE
        return _write(state, kind, body=DROP, prefix="{", push=push)
    return Action(state._replace(gap="text") if kind == "text" else state, DROP, push=INVISIBLE)


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
    if state.last == "begin":
        prefix = BEGIN + prefix
    has_bracket = kind in ("set", "angle", "bracket", "last bracket")
    next_state = state._replace(
        pending=pending,
        last=last,
        gap=state.gap if kind == "comma" else "",
        bracket=has_bracket or state.bracket and kind != "equals",
    )
    return Action(next_state, prefix=prefix, **output)


def _write_argument(state: State, kind: str) -> Action:
    """The action for an argument without braces: a letter, a command, one digit, or all digits
    after ^ and _.
    """
    is_script = state.pending in (_SCRIPT_ARGUMENT, _AFTER_MINUS)
    is_whole = kind in ("letter", "command") or kind == "digits" and is_script
    pending = 1 if state.pending == 2 else 0
    prefix = "" if state.pending == _AFTER_MINUS else "{"
    take = 0 if is_whole else 1
    return _write(state, kind, "closed", pending, prefix=prefix, suffix="}", take=take)


def _write_sign(state: State, kind: str) -> Action:
    if kind == "over":
        return _write(state, kind, body=DROP, prefix="}{")
    if kind == "decimal comma" and state.last == "numeral":
        return _write(state, kind, "numeral", body=DROP, prefix=".")
    if kind == "or" and state.inequality:
        return _write(state, kind, body=DROP, prefix="or")
    if kind == "or":
        state = state._replace(gap="space")
    prefix = "" if state.last == "comma" else ","
    return _write(state, "comma", "comma", body=DROP, prefix=prefix)


def _kept_space(state: State, kind: str) -> str:
    """A space stays after a comma, between two numbers, and between a command and a letter.

    Between a value and a letter or a word that is no unit it becomes GAP or TEXT.
    """
    is_word = kind in ("block", "number word")
    is_letter = kind in ("letter", "foreign letter")
    between_numbers = state.last == "numeral" and kind in _NUMERALS
    after_gap = bool(state.gap) and (state.last == "comma" or between_numbers)
    after_command = state.last == "command" and (kind == "letter" or is_word)
    space = " " if after_gap or after_command else ""
    if is_letter and state.last in ("numeral", "command", "closed"):
        return {"": "", "space": GAP, "text": TEXT}[state.gap] + space
    return space
