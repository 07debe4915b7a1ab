r"""Stage 1, spelling: `\dfrac` becomes `\frac`, `\left(` becomes `(`, `$` and `\;` become spaces,
`≤` becomes `\le`.

It turns the control characters of an answer into spaces. Four of them are then free for the stages:
they stand for things that have no character of their own (WRAP, COMMA, THIN, MARK).
"""

from __future__ import annotations

from srt_kernels.answers.stage import ALNUM, COPY, DROP, LOWER, Action, Stage

WRAP = "\x01"  # an invisible `{`: `\text{` and its like
COMMA = "\x02"  # `{,}` and `,\!`, which separate thousands
THIN = "\x03"  # `\,`, a thin space
MARK = "\x04"  # written by stage 2: the next command is a separator

_SPACE = "|".join(
    [
        "\u00a0|\u2009|\u202f",  # no-break and thin spaces
        r"[\x00- ~$%]|°|€|£",
        r"\\[\x00- ;:!>/$%()\[\]]|\\q?quad",
        r"\\(left|right)( *\.)?|\\[bB]igg?[lrm]?",
        r"\\(displaystyle|textstyle|limits|degree|hfill|cdotp)",
        r"^ *(\\circ|\\degree|{ *\\(circ|degree) *})",
    ]
)
_TEXT = "|".join(
    [
        "text|textbf|textit|textrm|textsf|textnormal",
        "mathrm|mathbf|mathit|mathsf|mbox|hbox|boxed|fbox|operatorname",
    ]
)
_SPELLINGS = {  # spelling in the output -> other spellings
    "\\frac": r"\\[dtc]frac",
    "\\le ": r"\\leq|\\leqslant|≤|<=",
    "\\ge ": r"\\geq|\\geqslant|≥|>=",
    "\\ne ": r"\\neq|≠",
    "<": r"\\lt",
    ">": r"\\gt",
    "\\ldots ": r"\.\.\.+|…|\\dots|\\cdots",
    "\\{": r"\\lbrace",
    "\\}": r"\\rbrace",
    "-": "−|–",
    "\\times ": "×",
    "\\cdot ": "·|⋅",
    "\\pi ": "π",
    "\\sqrt ": "√",
    "\\infty ": "∞",
    "\\cup ": "∪",
    "\\cap ": "∩",
    "\\in ": "∈",
    "^2": "²",
    "^3": "³",
    WRAP: rf"\\({_TEXT}) *{{",
    COMMA: r"{,} *|, *\\! *",
    THIN: r"\\, *",
    ", ": "[Aa]nd|AND",
    "pmatrix": "[bB]matrix",
}
_POWER = "(^ *{?[23]}?)? *"
_PATTERNS = [
    ("end", "$", 0),
    (" ", f"({_SPACE})+", 0),
    *((kind, pattern, 0) for kind, pattern in _SPELLINGS.items()),
    ("root", "√ *[0-9]+", 0),
    ("unit", rf"\\(text|mathrm|mbox) *{{ *[msgh] *{_POWER}}}{_POWER}", 0),
    ("word", "[A-Za-z][A-Za-z][A-Za-z]+|[Nn][Oo]", 0),
    ("copied", r"\\[A-Za-z]+|\\.|.", 0),
]


def _action(kind: str) -> Action:
    """A kind that has no case of its own is the spelling in the output."""
    match kind:
        case "word":
            return Action((), LOWER)
        case "copied":
            return Action((), COPY)
        case "root":
            return Action((), ALNUM, prefix="\\sqrt{", suffix="}")
        case "end":
            return Action((), DROP)
        case "unit":
            return Action((), DROP, prefix=" ")
    return Action((), DROP, prefix=kind)


def spelling_stage() -> Stage:
    """This stage has one state."""
    return Stage(_PATTERNS, [()], _action, first_state=lambda previous: ())
