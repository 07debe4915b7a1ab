"""Stage 3, trimming: `x=5` becomes `5`, `5cm^{2}.` becomes `5`, `2,74` becomes `2.74`, and `2,220`
becomes `2220` where there is no bracket.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from srt_kernels.answers.form.names import CHAIN, NAME
from srt_kernels.answers.form.symbols import BEGIN, BLOCK, GAP, MARK, TEXT
from srt_kernels.answers.form.words import LETTER_UNITS, PLAIN_LETTER_UNITS, SHORT_UNIT, UNIT
from srt_kernels.answers.stage import ALNUM, COPY, DROP, Action, Stage

SIGNED = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)"
"""A decimal number with or without a sign."""

# Units, after a value. TAIL is the rest of the answer.
_LETTER = r"[A-Za-z\x80-\xff]"
_TAIL = rf"([A-Za-z\x80-\xff./'{TEXT}{GAP}]|^{{-?[0-9]}})*"
_POWER = "(^{[23]})?"
_UNIT = f"({UNIT})((/|per)({SHORT_UNIT}|[hs]))?{_POWER}[ .]*$"
_TEXT_UNIT = rf"{TEXT} ?({LETTER_UNITS}|{_LETTER}{_LETTER}){_TAIL}"
_GAP_UNIT = (
    rf"{GAP} ?([A-Za-z][A-Za-z./']*[aeiou]{_TAIL}"
    rf"|(sq[ .{GAP}]*)?({SHORT_UNIT}|{PLAIN_LETTER_UNITS})(/({SHORT_UNIT}|[hs]))?{_POWER})"
)

# Numbers.
_GROUP = ",[0-9][0-9][0-9]"
_THOUSANDS = f"[1-9][0-9]?[0-9]?({_GROUP})+"
_SURE_THOUSANDS = f"[1-9][0-9]?[0-9]?({_GROUP})*,0[0-9][0-9]({_GROUP})*"
_DECIMAL_COMMA = "[0-9]+,([0-9][0-9]|[0-9][0-9][0-9][0-9]+)|0,[0-9][0-9]+"
_SPACED = "[1-9][0-9]?[0-9]?( [0-9][0-9][0-9])+"
_RATIONAL = rf"{SIGNED}(/{SIGNED})?|[+-]?\\frac{{{SIGNED}}}{{{SIGNED}}}|{_SURE_THOUSANDS}"
_START = f"[{BEGIN}=]"
_PATTERNS = [
    ("end", r"[ .]*$", 0),
    ("begin", BEGIN, 0),
    ("name", rf"{BEGIN}{NAME}(=|\\approx)[^=]+$", 0),
    ("chain", f"{BEGIN}{CHAIN}", 0),
    ("about", r"\\approx", 0),
    ("rounded", r"\\approx ?[+-]?[0-9.][^=]*$", 0),
    ("membership", rf"{BEGIN}[A-Za-z]{MARK}\\in", 0),
    ("choice", rf"{BEGIN}\([A-E]\)[{TEXT}{GAP}{BLOCK}]?[0-9A-Za-z\\.:\-].*$", 0),
    ("enclosed", rf"{_START}\(([A-Za-z]|{_RATIONAL})\)[ .]*$", 0),
    ("decimal comma", rf"{_START}[+-]?({_DECIMAL_COMMA})([^0-9, ][^, ]*)?$", 0),
    ("spaced", rf"{_START}[+-]?{_SPACED}(\.[0-9]+)?([{TEXT}{GAP}{BLOCK}].*)?[ .]*$", 0),
    ("equals", "=", 0),
    ("last equals", "=[^=]*$", 0),
    ("last bracket", r"\)[ .]*$", 0),
    ("unit", _UNIT, 0),
    ("words", f"({_TEXT_UNIT}|{_GAP_UNIT})[ .]*$", 0),
    ("words", f"{_TEXT_UNIT}[,)]", 1),
    ("number word", f"{BLOCK}[a-z.]+{BLOCK}", 0),
    ("marker", f"[{TEXT}{GAP}]", 0),
    ("block", BLOCK, 0),
    ("sure thousands", f"{_SURE_THOUSANDS}([^0-9]|$)", 1),
    ("thousands", f"{_THOUSANDS}([^0-9,]|$)", 1),
    ("listed thousands", f"{_THOUSANDS}, ", 2),
    ("value", f"[0-9]+|}}|{_THOUSANDS}", 0),
    ("pi", r"\\pi", 0),
    ("open", rf"[(\[]|{MARK}\\{{|\\langle", 0),
    ("shut", rf"[)\]]|{MARK}\\}}|\\rangle", 0),
    ("comma", ",", 0),
    ("point", r"\.+", 0),
    ("space", " +", 0),
    ("numeric", r"\\(frac|sqrt|times|cdot|div)", 0),
    ("letters", r"\\[A-Za-z]+|[A-Za-z]+|[\x80-\xff]", 0),
    ("other", ".", 0),
]
_DROPPED_AT_START = {  # kind -> how many bytes go, 0: all; what follows
    "begin": (0, "start"),
    "space": (0, "start"),
    "about": (0, "start"),
    "rounded": (len("\\approx"), "start"),
    "name": (1, "name"),
    "chain": (1, "chain"),
    "membership": (len(f"{BEGIN}x{MARK}\\in"), "start"),
    "choice": (len(f"{BEGIN}("), "choice"),
    "enclosed": (len("=("), "start"),
    "decimal comma": (1, "decimal"),
    "spaced": (1, "joining"),
}


class State(NamedTuple):
    """What came before a match."""

    bracket: bool  # whether the answer has a bracket, which stage 2 knows
    depth: int  # open brackets, 2 for more
    enclosed: bool  # whether the answer is one letter or number in brackets; they go
    numeric: bool  # whether no letter came
    last: str  # the kind of the match before, "start", or one of _MODES


_MODES = {  # what is going on, until its end
    "name": "a name is dropped up to its `=`",
    "chain": "equal sides are dropped up to the last `=`",
    "decimal": "digits are copied up to a decimal comma",
    "joining": "digits are copied without the spaces between them",
    "choice": "the letter of a choice is next",
    "chosen": "all is dropped",
}


def trimming_stage() -> Stage:
    last = ("start", "value", "pi", "comma", "space", "shut", "other", "", *_MODES)
    states = itertools.product((False, True), range(3), (False, True), (False, True), last)
    return Stage(_PATTERNS, states, _action, _first_state)


def _first_state(previous: tuple) -> State:
    """previous: the last state of stage 2."""
    _, _, _, bracket, _ = previous
    return State(bracket, 0, False, True, "start")


def _action(
    bracket: bool, depth: int, enclosed: bool, numeric: bool, last: str, kind: str
) -> Action:
    state = State(bracket, depth, enclosed, numeric, last)
    if last in _MODES and (action := _mode_action(state, kind)):
        return action
    if _is_dropped_at_end(state, kind):
        return Action(state._replace(last=""), DROP)
    if last == "start" and kind in _DROPPED_AT_START:
        return _start(state, kind)
    if kind == "marker":
        return Action(state, DROP)
    if kind == "block":
        return Action(state._replace(last="other"), DROP)
    if "thousands" in kind:
        body = ALNUM if _is_one_number(state, kind) else COPY
        return Action(state._replace(last="value"), body)
    return _copy(state, kind)


def _start(state: State, kind: str) -> Action:
    if kind == "decimal comma" and state.bracket:
        return Action(state, DROP, take=1)
    taken, last = _DROPPED_AT_START[kind]
    enclosed = state.enclosed or kind == "enclosed"
    return Action(state._replace(enclosed=enclosed, last=last), DROP, take=taken)


def _mode_action(state: State, kind: str) -> Action | None:
    """None where the mode does not matter."""
    start = state._replace(last="start")
    match state.last:
        case "name" | "chain" if kind in ("enclosed", "decimal comma", "spaced"):
            return _start(start, kind)
        case "name" if kind in ("equals", "last equals", "about", "rounded"):
            return Action(start, DROP, take=len("\\approx") if "equals" not in kind else 1)
        case "chain" if kind == "last equals":
            return Action(start, DROP, take=1)
        case "name" | "chain":
            return Action(state, DROP, take=1)
        case "decimal" if kind == "comma":
            return Action(state._replace(last="value"), DROP, prefix=".")
        case "decimal":
            return Action(state, take=1)
        case "joining" if kind == "space":
            return Action(state, DROP)
        case "joining" if kind in ("value", "other"):  # "other" is the sign
            return Action(state)
        case "choice":
            return Action(state._replace(last="chosen"), take=1)
        case "chosen":
            return Action(state, DROP)
    return None


def _copy(state: State, kind: str) -> Action:
    depth = state.depth + (kind == "open") - (kind == "shut")
    after = state._replace(
        depth=min(max(depth, 0), 2),
        numeric=state.numeric and kind != "letters",
        last={"number word": "value", "point": "comma"}.get(kind, kind),
    )
    match kind:
        case "number word":
            return Action(after, ALNUM)
        case "value" | "pi" | "comma" | "point" | "space" | "shut":
            return Action(after)
        case "open" | "numeric" | "letters" | "other" | "about":
            return Action(after._replace(last="other"))
    return _copy_byte(after, kind)


def _copy_byte(after: State, kind: str) -> Action:
    """The action for a long match that means nothing where it stands: its first byte alone."""
    match kind:
        case "words":
            return Action(after._replace(last="other"), DROP, take=1)
        case "unit":
            return Action(after._replace(numeric=False, last=""), take=1)
    return Action(after._replace(last="other"), take=1)


def _is_dropped_at_end(state: State, kind: str) -> bool:
    """Spaces and full stops, a unit after a number, the bracket around one value, and a rounded
    value after an exact one.
    """
    after_value = state.last in ("value", "pi", "joining")
    match kind:
        case "end":
            return True
        case "last bracket":
            return state.enclosed
        case "rounded":
            return state.last != "start"
        case "unit":
            return after_value
        case "words":
            return state.numeric and (after_value or state.last == "shut")
    return False


def _is_one_number(state: State, kind: str) -> bool:
    """Whether the commas of a match separate thousands. In brackets they do where a group begins
    with 0, and where a comma with a space separates the items.
    """
    if state.last == "comma" and kind != "sure thousands":
        return False
    return not state.depth or kind != "thousands" or state.last == "space"
