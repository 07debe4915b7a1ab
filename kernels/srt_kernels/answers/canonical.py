r"""The canonical form of an answer: four lexers in a row, of which Python and the GPU walk the same tables.

A stage cuts its input into the longest matches of its patterns. What becomes of a match depends on its kind and on a
small state, which is what came before; the stage's function says it once for each of both, when the tables are made.
The only memory beside is two bits for each brace that is open, and a number's numerator and denominator.

    spelling    `\dfrac` is `\frac`, `\left(` is `(`, `$` and `\;` are spaces, `\text{` is an invisible `{`
    structure   `\frac12` is `\frac{1}{2}`, `{x}+1` is `x+1`, `2{,}220` is `2220`; spaces go
    trimming    `x=5` is `5`, `5cm^{2}.` is `5`, `2,220` is `2220` where there is no bracket
    numbers     `\frac{2}{4}` is `1/2`, alone or between the commas and brackets of a tuple, set or matrix
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from math import gcd
from typing import NamedTuple

from srt_kernels.answers.automaton import compile_patterns

MAX_BYTES = 512  # of an answer, before and after each stage: no real answer is that long, and a collapsing policy's are
MAX_DEPTH = 30  # open braces
LIMIT = 10**18  # numerators and denominators stay below: they fit int64
SPACES = bytes(range(33))  # control characters are spaces, which leaves some of them to the stages:
WRAP, COMMA, THIN, MARK = (
    "\x01",
    "\x02",
    "\x03",
    "\x04",
)  # invisible `{`, `{,}`, `\,`, "a separator follows"
OWN_TEXT = b"\\verb "  # opens the form of an answer that keeps its own text

DROP, COPY, LOWER, ALNUM, NUMBER = range(5)  # what becomes of the bytes of a match


class Act(NamedTuple):
    """What becomes of a match: before + body + after."""

    state: tuple  # that follows
    body: int = COPY
    before: str = ""
    after: str = ""
    take: int = 0  # bytes of the match that are used up, the others are read again; 0: all
    push: int = (
        -1
    )  # a brace opens: 0 invisible, 1 visible, 2 visible and one more argument follows it


CLOSED = (
    "close",
    "close visible",
    "close argument",
)  # kinds of a closing brace, by what was pushed


class Unfit(ValueError):
    """Braces that do not match or nest too deeply, or an output of more than MAX_BYTES."""


class Stage:
    """patterns: (kind, pattern, how many symbols at its end are only looked at). act(*state, kind) -> Act."""

    def __init__(
        self, patterns: list[tuple[str, str, int]], states: Iterable[tuple], act: Callable[..., Act]
    ):
        self.automaton = compile_patterns([pattern for _, pattern, _ in patterns])
        self.kinds = [kind for kind, _, _ in patterns]
        self.context = [context for _, _, context in patterns]
        if "close" in self.kinds:
            self.kinds += CLOSED[1:]
        self.states = list(states)
        self.acts = {
            (state, kind): act(*state, kind) for state in self.states for kind in self.kinds
        }

    def walk(self, data: bytes, state: tuple) -> Iterator[tuple[Act, bytes]]:
        """What becomes of each match, and the bytes of it that are used up."""
        at, stack, symbols = 0, 1, self.automaton.symbols(data)
        while at < len(symbols):
            pattern, length = self.automaton.longest(symbols, at)
            kind = self.kinds[pattern]
            if kind == "close":
                if stack == 1:
                    raise Unfit
                kind, stack = CLOSED[stack & 3], stack >> 2
            act = self.acts[state, kind]
            if act.push >= 0:
                if stack >> 2 * MAX_DEPTH:
                    raise Unfit
                stack = stack << 2 | act.push
            taken = act.take or length - self.context[pattern]
            yield act, data[at : at + taken]
            state, at = act.state, at + taken
        if stack != 1:
            raise Unfit

    def run(self, data: bytes, state: tuple) -> tuple[bytes, tuple]:
        """Output and last state."""
        out = bytearray()
        for act, match in self.walk(data, state):
            out += act.before.encode() + _body(act.body, match) + act.after.encode()
            if len(out) > MAX_BYTES:
                raise Unfit
            state = act.state
        return bytes(out), state


def _body(body: int, match: bytes) -> bytes:
    if body == COPY:
        return match
    if body == ALNUM:
        return bytes(byte for byte in match if bytes([byte]).isalnum())
    if body == NUMBER:
        return rational(match) or match
    return match.lower() if body == LOWER else b""


def canonical_bytes(answer: bytes) -> bytes | None:
    """The form of an answer in UTF-8; None for an empty one."""
    answer = answer.strip(SPACES)
    form = _form(answer) if len(answer) <= MAX_BYTES else None
    return OWN_TEXT + answer if form is None else form or None


@lru_cache(maxsize=1 << 14)  # the answers of a group are few
def _form(answer: bytes) -> bytes | None:
    """None for an answer that keeps its own text: unfit ones, and those of which trimming leaves nothing, such as "+"."""
    state = ()
    try:
        for stage, enter in stages():
            answer, state = stage.run(answer, enter(*state))
            if stage is stages()[1][0] and not answer:
                return answer
    except Unfit:
        return None
    return answer or None


_SPACE = (
    "\u00a0|\u2009|\u202f"
    + r"|[\x00- ~$%]|°|€|£|\\[\x00- ;:!>/$%()\[\]]|\\q?quad|\\(left|right)( *\.)?|\\[bB]igg?[lrm]?"
)
_SPACE += r"|\\(displaystyle|textstyle|limits|degree|hfill|cdotp)|^ *(\\circ|\\degree|{ *\\(circ|degree) *})"
_TEXT = r"text|textbf|textit|textrm|textsf|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|boxed|fbox|operatorname"
_SAME = {
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
_SPELLING = [
    ("end", "$", 0),
    (" ", f"({_SPACE})+", 0),
    *((kind, pattern, 0) for kind, pattern in _SAME.items()),
]
_SPELLING += [
    ("root", "√ *[0-9]+", 0),
    ("meter", rf"\\(text|mathrm|mbox) *{{ *[msgh] *{_POWER}}}{_POWER}", 0),
]
_SPELLING += [
    ("word", "[A-Za-z][A-Za-z][A-Za-z]+|[Nn][Oo]", 0),
    ("copied", r"\\[A-Za-z]+|\\.|.", 0),
]


def _spell(kind: str) -> Act:
    if kind in ("word", "copied"):
        return Act((), LOWER if kind == "word" else COPY)
    if kind == "root":
        return Act((), ALNUM, before="\\sqrt{", after="}")
    return Act((), DROP, before={"end": "", "meter": " "}.get(kind, kind))


_GROUPED = rf"[1-9][0-9]?[0-9]?([{COMMA}{THIN}][0-9][0-9][0-9])+"
_PRODUCT, _TIMES = rf"(\\cdot|\*)[ {THIN}]*", rf"\\times[ {THIN}]*"
_FACTOR = "[A-DF-Za-df-z(]"  # no e and no \\frac: 2 e3 and 2 \\frac12 are not products
_STRUCTURE = [
    ("end", "$", 0),
    ("space", f"[ {THIN}]+", 0),
    ("open", "{", 0),
    ("wrap", WRAP, 0),
    ("close", "}", 0),
    ("fraction", r"\\frac", 0),
    ("root", r"\\sqrt", 0),
    ("script", "[_^]", 0),
    ("angle", r"\\[lr]angle", 0),
    ("product", rf"{_PRODUCT}{_FACTOR}", 1),
    ("product", rf"{_PRODUCT}\\[a-eg-z]", 2),
    ("times", rf"{_TIMES}{_FACTOR}", 1),
    ("times", rf"{_TIMES}\\[a-eg-z]", 2),
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


def _structure(pending: int, last: str, gap: bool, bracket: bool, kind: str) -> Act:
    """pending: arguments that are yet to come, 3 for the one of ^ or _. gap: whether spaces were dropped since `last`."""
    next_pending = 1 if pending == 2 else 0
    numeral = kind in ("digits", "grouped", "not grouped", "point")
    kept = (
        gap
        and (last == "comma" or last == "numeral" and numeral)
        or last == "command"
        and kind == "letter"
    )
    space = " " if kept else ""

    def followed_by(last: str = "", pending: int = 0, **others) -> Act:
        brackets = bracket or kind in ("set", "angle", "bracket", "last bracket")
        return Act(
            **{"state": (pending, last, kind == "comma" and gap, brackets), "before": space}
            | others
        )

    if kind in ("end", "close"):
        return Act((pending, last, gap, bracket), DROP)
    if (
        kind in ("space", "product", "last row")
        or kind == "times"
        and last in ("numeral", "closed")
    ):
        return Act((pending, last, True, bracket), DROP)
    if kind in ("open", "wrap"):
        if pending or kind == "open" and last in ("command", "closed"):
            return followed_by(body=DROP, before="{", push=1 + next_pending)
        return Act((pending, last, gap, bracket), DROP, push=0)
    if kind in CLOSED:
        return followed_by("closed", pending=1 if kind == "close argument" else 0)
    if pending and kind in ("letter", "command", "digits", "grouped", "not grouped"):
        whole = kind in ("letter", "command") or kind == "digits" and pending == 3
        return followed_by("closed", next_pending, before="{", after="}", take=0 if whole else 1)
    if kind in ("fraction", "root", "script"):
        arguments = {"fraction": 2, "root": 1, "script": 3}[kind]
        return followed_by("" if kind == "script" else "command", arguments)
    if kind in ("relation", "environment", "set", "row"):
        last = {"relation": "command", "environment": "closed"}.get(kind, "")
        return followed_by(last, before=space + MARK)
    if kind == "comma":
        return followed_by("comma", body=DROP, before="" if last == "comma" else ",")
    if kind == "times":
        return followed_by("command", take=len("\\times"))
    last = {"command": "command", "angle": "command", "last bracket": "closed"}.get(
        kind, "numeral" if numeral else ""
    )
    return followed_by(
        last, body=ALNUM if kind == "grouped" else COPY, take=1 if kind == "not grouped" else 0
    )


_UNIT = r"deg|degrees?|rad|radians?|units?|cents?|dollars?|euros?|percent|hours?|hrs?|minutes?|min|seconds?|sec|days?|weeks?"
_UNIT += r"|months?|years?|mm|cm|km|kg|ml|mph|ft|(milli|centi|kilo)?met(er|re)s?|inch(es)?|feet|foot|yards?|miles?|grams?"
_UNIT += r"|kilograms?|pounds?|lit(er|re)s?|gallons?|points?|people|ways?"
_UNITS = rf"(square|sq|cubic)?[ .]?({_UNIT})((/|per)({_UNIT}|h|s))?(^{{[23]}})?[ .]*"
_UNITS = f"{_UNITS}({_UNITS})?$"
_THOUSANDS = "[1-9][0-9]?[0-9]?(,[0-9][0-9][0-9])+"
_SIGNED = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)"
_TRIMMING = [
    ("end", r"[ .]*$", 0),
    ("definition", "[A-Za-z]=[^=]+$", 0),
    ("membership", rf"[A-Za-z]{MARK}\\in", 0),
    ("function", r"[A-Za-z]\([A-Za-z]\)=[^=]+$", 0),
    (
        "enclosed",
        rf"\(([A-Za-z]|{_SIGNED}(/{_SIGNED})?|[+-]?\\frac{{{_SIGNED}}}{{{_SIGNED}}})\)[ .]*$",
        0,
    ),
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


def _trim(bracket: bool, enclosed: bool, last: str, kind: str) -> Act:
    """last: the kind before, or "start". enclosed: the answer is one letter or number in brackets, which go."""

    def followed_by(last: str, body: int = COPY, take: int = 0, enclosed: bool = enclosed) -> Act:
        return Act((bracket, enclosed, last), body, take=take)

    if (
        kind == "end"
        or (kind, last) in (("unit", "value"), ("unit apart", "pi"))
        or kind == "last bracket"
        and enclosed
    ):
        return followed_by("", DROP)
    dropped = {
        "space": 0,
        "definition": len("x="),
        "function": len("f(x)="),
        "membership": len(f"x{MARK}\\in"),
        "enclosed": 1,
    }
    if last == "start" and kind in dropped:
        return followed_by("start", DROP, dropped[kind], enclosed or kind == "enclosed")
    if kind == "thousands":
        return followed_by("value", COPY if bracket or last == "comma" else ALNUM)
    if kind in ("value", "pi", "comma", "space", "other"):
        return followed_by(kind)
    return followed_by("", take=1)


_NUMBER = "|".join(
    [
        _SIGNED,
        f"{_SIGNED}/{_SIGNED}",
        rf"[+-]?\\frac{{{_SIGNED}}}{{{_SIGNED}}}",
        r"[+-]?[0-9]+(\\frac{[0-9]+}{[0-9]+}| [0-9]+/[0-9]+)",
        r"[+-]?10^({[+-]?[0-9]+}|[+-]?[0-9]+)",
        rf"{_SIGNED}([eE][+-]?[0-9]+|(\\times|\\cdot|\*)10^({{[+-]?[0-9]+}}|[+-]?[0-9]+))",
    ]
)
_NUMBERS = [
    ("end", "(, *)?$", 0),
    ("comma", ", *", 0),
    ("number", rf"({_NUMBER})([,;()\[\]&=<>{MARK}]|$)", 1),
    ("plus", r"\+", 0),
    ("separator", r"[;(\[&=<>]", 0),
    ("mark", MARK, 0),
    ("command", r"\\[A-Za-z]+ ?|\\begin{[a-z*]*}|\\[^}]", 0),
    ("inside", r"[0-9]+|[A-Za-z]+|\\end{[a-z*]*}|\\}|.", 0),
]


def _number(bracket: bool, place: str, kind: str) -> Act:
    """place: a number may "start" here, not "inside" of other things; after a MARK a command separates."""
    if kind == "end":
        return Act((bracket, place), DROP)
    if kind == "comma":
        return Act((bracket, "start"), DROP, before="," if bracket else ", ")
    if kind == "mark" or kind == "plus" and place == "start":
        return Act((bracket, "mark" if kind == "mark" else "start"), DROP)
    separates = kind == "separator" or kind == "command" and place == "mark"
    return Act(
        (bracket, "start" if separates else "inside"),
        NUMBER if (kind, place) == ("number", "start") else COPY,
    )


_FLAGS = (False, True)


@cache
def stages() -> list[tuple[Stage, Callable[..., tuple]]]:
    """Each with its first state, by the last state of the stage before it."""
    structures = itertools.product(
        range(4), ("", "numeral", "command", "comma", "closed"), _FLAGS, _FLAGS
    )
    trims = itertools.product(
        _FLAGS, _FLAGS, ("start", "value", "pi", "comma", "space", "other", "")
    )
    numbers = itertools.product(_FLAGS, ("start", "inside", "mark"))
    return [
        (Stage(_SPELLING, [()], _spell), lambda: ()),
        (Stage(_STRUCTURE, structures, _structure), lambda: (0, "", False, False)),
        (
            Stage(_TRIMMING, trims, _trim),
            lambda pending, last, gap, bracket: (bracket, False, "start"),
        ),
        (Stage(_NUMBERS, numbers, _number), lambda bracket, enclosed, last: (bracket, "start")),
    ]


NONE, DIGIT, POINT, MINUS, OVER, MIXED, BRACE, TIMES, POWER, EXPONENT = range(10)
_MEANS = dict.fromkeys(b"0123456789", DIGIT) | {
    ord("."): POINT,
    ord("-"): MINUS,
    ord("/"): OVER,
    ord("}"): BRACE,
}
_MEANS |= (
    dict.fromkeys(b" f", MIXED)
    | dict.fromkeys(b"mo*", TIMES)
    | dict.fromkeys(b"eE", EXPONENT)
    | {ord("^"): POWER}
)
MEANING = [
    _MEANS.get(byte, NONE) for byte in range(256)
]  # of a byte of a number: f as in \frac, m as in \times
NUMERATOR, DENOMINATOR, TEN, POWER_OF_TEN = range(4)  # the part of a number that a digit belongs to


def rational(number: bytes) -> bytes | None:
    """A number in lowest terms; None if it is none (1/0, 1\\frac{3}{2}) or has a numerator or denominator >= LIMIT."""
    whole, parts, power, shift, sign, minus, zeros = 0, [0, 1], 0, 0, 1, 1, 0
    part, point, mixed = NUMERATOR, False, False
    for byte in number:
        meaning = MEANING[byte]
        if meaning == DIGIT and part == POWER_OF_TEN:
            power = min(10 * power + byte - 48, 9999)
        elif meaning == DIGIT and part != TEN:
            zeros += 1  # zeros after the point count once another digit follows them
            if byte > 48 or not point:
                if parts[part] > (LIMIT - 1 - (byte - 48)) // 10 ** min(zeros, 18):
                    return None
                parts[part] = parts[part] * 10 ** min(zeros, 18) + byte - 48
                shift += (zeros if part == DENOMINATOR else -zeros) * point
                zeros = 0
        elif meaning == POINT:
            point = True
        elif meaning == MINUS and part == POWER_OF_TEN:
            minus = -1
        elif meaning == MINUS:
            sign = -sign
        elif meaning == OVER or meaning == BRACE and part == NUMERATOR:
            part, point, zeros, parts[DENOMINATOR] = DENOMINATOR, False, 0, 0
        elif meaning == MIXED:
            whole, parts[NUMERATOR], point, zeros = parts[NUMERATOR], 0, False, 0
            mixed = whole > 0
        elif meaning == TIMES:
            part = TEN
        elif meaning == POWER or meaning == EXPONENT and part == NUMERATOR:
            parts[NUMERATOR] = (
                1 if meaning == POWER and part == NUMERATOR else parts[NUMERATOR]
            )  # 10^5
            part = POWER_OF_TEN
    n, d = parts
    if d == 0 or mixed and n >= d:
        return None
    shift += minus * power
    common = gcd(n, d)
    n, d = n // common, d // common
    if abs(shift) > 18 and n:
        return None
    scale = 10 ** min(abs(shift), 18)
    if (n if shift > 0 else d) > (LIMIT - 1) // scale and n:
        return None
    n, d = (n * scale, d) if shift > 0 else (n, d * scale)
    common = gcd(n, d)
    n, d = n // common, d // common
    if whole > (LIMIT - 1 - n) // d:
        return None
    n += whole * d
    return b"%s%d%s" % (b"-" if sign < 0 < n else b"", n, b"/%d" % d if d > 1 else b"")


_MASK = 2**64 - 1
FNV_PRIME, MIX = 0x100000001B3, (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)


def fnv(data: bytes) -> int:
    """FNV-1a in 64 bits."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * FNV_PRIME & _MASK
    return h


def signed(h: int) -> int:
    return h - (h >> 63 << 64)


def hash_bytes(form: bytes) -> int:
    """FNV-1a, mixed by the finaliser of MurmurHash3; signed, and never 0."""
    h = fnv(form)
    for factor in MIX:
        h = (h ^ h >> 33) * factor & _MASK
    return signed(h ^ h >> 33) or 1
