r"""Stage 1, spelling: `\dfrac` becomes `\frac`, `\left(` becomes `(`, `$` and `\;` become spaces,
`≤` becomes `\le`, `\\frac` becomes `\frac`, and `East` becomes `east`.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from srt_kernels.answers.form.characters import CHARACTERS, DIGITS, SCRIPTS
from srt_kernels.answers.form.symbols import BLOCK, COMMA, LINE, OR, TEXT, THIN, WRAP
from srt_kernels.answers.form.words import CAPITALS, KNOWN_CAPITALS, NO_UNITS, NUMBER_WORDS
from srt_kernels.answers.stage import ALNUM, COPY, DROP, LOWER, Action, Stage

_WIDE_SPACE = "\u00a0|\u2009|\u202f|\u3000"  # no-break, thin and full-width spaces
_SPACE_COMMAND = "|".join(
    [
        r"\\[\x00- ;:!>/$%()\[\]]|\\q?quad|\\(left|right)( *\.)?|\\[bB]igg?[lrm]?",
        r"\\(displaystyle|textstyle|limits|degree|hfill|cdotp|bf|rm|it|sf)",
        r"^ *(\\circ|\\degree|{ *\\(circ|degree) *})|°( ?[CF])?|℃|℉|€|£|％",
    ]
)
_TEXT = r"\\(text|textrm|textbf|textit|textsf|textup|textnormal|mathrm|mbox|hbox)"
_FONT = r"\\(mathbf|mathit|mathsf|mathnormal|boldsymbol|bm|boxed|fbox|operatorname)"
_BRACKETED_GRID = r"{ *(array *} *{[lcr|@ ]*|matrix *|smallmatrix *)}"
_SPELLINGS = {  # spelling in the output -> other spellings
    "\\frac": r"\\[dtc]frac",
    "\\le ": r"\\leq|\\leqslant|≤|<=",
    "\\ge ": r"\\geq|\\geqslant|≥|>=",
    "\\ne ": r"\\neq|≠",
    "<": r"\\lt|<",
    ">": r"\\gt|>",
    "\\in ": r"∈|\\in",
    "\\ldots ": r"\.\.\.+|…|\\dots|\\cdots",
    "\\to ": r"\\rightarrow|→",
    "\\approx ": r"≈|\\simeq",
    "\\emptyset ": r"\\varnothing|∅",
    "\\{": r"\\lbrace",
    "\\}": r"\\rbrace",
    "|": r"\\mid|\\[lr]?vert",
    "\\pi ": "π|pi",
    "\\end{pmatrix}": r"\\(\\)?end *{ *(array|matrix|smallmatrix) *} *(\\(\\)?right *)?[)\]]",
    WRAP: rf"{_FONT} *{{",
    TEXT: rf"{_TEXT} *{{",
    COMMA: r"{,} *|, *\\! *",
    THIN: r"\\, *",
    ", ": r"[Aa]nd|AND|，|、|\\land",
    OR: r"[Oo]r|\\lor",
    "pmatrix": "[bB]matrix",
}
_ROOTS_OF_BRACKETS = {"\\sqrt(": r"\\sqrt", "sqrt(": "sqrt", "√(": "√"}
_INEQUALITIES = ("\\le ", "\\ge ", "\\ne ", "<", ">", "\\in ")
_NAME = "[A-Za-z][A-Za-z]"  # of a command has two letters or more
_PATTERNS = [
    ("end", r"\\*$", 0),
    ("space", rf"([\x00- ~$%]|{_WIDE_SPACE})+", 0),
    ("space", rf"{_SPACE_COMMAND}|{_TEXT}|{_FONT}", 0),
    ("line", r"[\x00- ]*\x0a[\x00- ]*[0-9A-Za-z_#]", 1),
    ("line", r"[\x00- ]*\x0a[\x00- ]*-[0-9]", 2),
    *((kind, pattern, 0) for kind, pattern in (CHARACTERS | SCRIPTS | _SPELLINGS).items()),
    ("grid", rf"(\\left *)?[(\[] *\\begin *{_BRACKETED_GRID}", 0),
    ("escaped grid", rf"(\\(\\)?left *)?[(\[] *\\\\begin *{_BRACKETED_GRID}", 0),
    ("begin", r"\\begin", 0),
    ("escaped begin", r"\\\\begin", 0),
    ("end of environment", r"\\end", 0),
    ("escaped end", r"\\\\end", 0),
    ("escaped", rf"(\\)?\\\\{_NAME}", 0),
    ("escaped", r"\\\\[{}$%,!;:|()\[\]]", 0),
    ("escaped row", r"\\\\\\\\", 0),
    ("choice", r"[A-E][.)] +|[A-E]\)[ .]*$", 0),
    ("star", "[*`]", 0),
    ("bold", r"[*`][*`]+|[*`]+[ .]*$", 0),
    ("root", "√ *[0-9]+", 0),
    *((kind, rf"{pattern}\([^()]*\)", 0) for kind, pattern in _ROOTS_OF_BRACKETS.items()),
    (")", r"\)", 0),
    ("function", "sqrt|sin|cos|tan|ln|log", 0),
    ("number word", rf"{NUMBER_WORDS}|[ap]\.m\.", 0),
    ("no unit", NO_UNITS, 0),
    ("capitals", CAPITALS, 0),
    ("word", f"[A-Za-z][a-z][a-z]+|[A-Z][A-Z][A-Z][A-Z][A-Z]+|{KNOWN_CAPITALS}|[Nn]o", 0),
    ("cell", "[A-Za-z][A-Za-z][A-Za-z]+|[A-Za-z0-9_#]", 0),
    ("copied", r"\\[A-Za-z]+|\\.|.", 0),
]
_WORDS = {  # kind -> what becomes of its letters, and what stands before and after them
    "number word": (LOWER, BLOCK, BLOCK),
    "no unit": (LOWER, BLOCK, ""),
    "capitals": (COPY, BLOCK, ""),
    "word": (LOWER, "", ""),
    "cell": (COPY, "", ""),
}


class State(NamedTuple):
    """What came before a match."""

    last: str  # "start"; "cell": letters or digits; "^" or "_": a raised or lowered digit; or ""
    environment: str  # "plain" or "escaped", whose commands have two backslashes; "" outside
    bold: bool  # whether the answer begins with *
    inequality: bool  # whether an inequality came
    root: bool  # whether the next `)` ends a root


_FIRST_STATE = State("start", "", False, False, False)


def spelling_stage() -> Stage:
    last = ("start", "cell", "^", "_", "")
    flags = [(False, True)] * 3
    states = itertools.product(last, ("", "plain", "escaped"), *flags)
    return Stage(_PATTERNS, states, _action, lambda previous: _FIRST_STATE)


def _action(
    last: str, environment: str, bold: bool, inequality: bool, root: bool, kind: str
) -> Action:
    """A kind that has no case of its own is the spelling in the output."""
    state = State(last, environment, bold, inequality, root)
    if kind in _WORDS:
        body, prefix, suffix = _WORDS[kind]
        return Action(state._replace(last="cell"), body, prefix, suffix)
    after = state._replace(last="")
    match kind:
        case "end":
            return Action(after, DROP)
        case "space":
            return Action(state if last == "start" else after, DROP, prefix=" ")
        case "line":
            return Action(after, DROP, prefix=LINE if last == "cell" else " ")
        case "star" | "bold" if last == "start":
            return Action(state._replace(bold=True), DROP)
        case "bold":
            return Action(after, DROP if bold else COPY)
        case "choice" if last == "start":
            return Action(after, ALNUM, prefix="(", suffix=")")
        case "choice":
            return Action(state._replace(last="cell"), take=1)
        case "root":
            return Action(after, ALNUM, prefix="\\sqrt{", suffix="}")
        case "function":
            return Action(after, prefix="\\", suffix=" ")
        case "copied" | "star":
            return Action(after)
        case ")":
            closes = DROP if root else COPY
            return Action(after._replace(root=False), closes, suffix="}" if root else "")
    if kind in _ROOTS_OF_BRACKETS:
        taken = len(kind.encode())
        return Action(after._replace(root=True), DROP, prefix="\\sqrt{", take=taken)
    if kind in SCRIPTS:
        return Action(
            state._replace(last=kind[0]), DROP, prefix=kind[1:] if last == kind[0] else kind
        )
    return _environment_action(after, kind) or _spelling_action(state, kind)


def _environment_action(after: State, kind: str) -> Action | None:
    """Begins and ends of environments, and doubled backslashes."""
    environment = after.environment
    match kind:
        case "grid" | "escaped grid":
            inside = "plain" if kind == "grid" else "escaped"
            return Action(after._replace(environment=inside), DROP, prefix="\\begin{pmatrix}")
        case "begin":
            return Action(after._replace(environment=environment or "plain"))
        case "escaped begin":
            return Action(after._replace(environment="escaped"), DROP, take=1)
        case "end of environment":
            return Action(after._replace(environment=""))
        case "escaped end":
            return Action(after._replace(environment=""), DROP, take=1)
        case "escaped" if environment == "plain":  # the end of a row
            return Action(after, take=2)
        case "escaped":
            return Action(after, DROP, take=1)
        case "escaped row" if environment == "escaped":
            return Action(after, DROP, prefix="\\\\")
        case "escaped row":
            return Action(after, take=2)
    return None


def _spelling_action(state: State, kind: str) -> Action:
    if kind in (WRAP, TEXT):
        return Action(
            state if state.last == "start" else state._replace(last=""), DROP, prefix=kind
        )
    environment = "" if kind == "\\end{pmatrix}" else state.environment
    last = "cell" if kind in DIGITS else ""
    inequality = state.inequality or kind in _INEQUALITIES
    state = state._replace(last=last, environment=environment, inequality=inequality)
    return Action(state, DROP, prefix=kind)
