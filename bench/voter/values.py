"""The value of a gold answer, if it is a rational number."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache

_BRACED = r"\{((?:[^{}]|\{[^{}]*\})*)\}"  # braces, and at most one pair inside of them
_FRAC = re.compile(rf"\\[dtc]?frac *(?:{_BRACED}|([0-9])) *(?:{_BRACED}|([0-9]))")
_UNIT = re.compile(
    r" ?(?:\\text\{ (?:degrees|cents)\}|\\mbox\{ ?(?:cm|inches)\}\^\{2\}|\^\{\\circ\})$"
)
_NUMBER = re.compile(
    r"(?P<sign>-?)(?:(?P<decimal>[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<ratio>[0-9]+/0*[1-9][0-9]*)"
    r"|(?P<whole>[0-9]*) ?"
    r"\\frac\{(?P<numerator>[0-9]+)\}\{(?P<denominator>[0-9]*[1-9][0-9]*)\})"
)
_MAX_PLACES = 12  # of a decimal


def tidy(text: str) -> str:
    r"""One LaTeX for a gold answer: \frac{a}{b}, ^{2}, no \left, no \!. Spellings start from it."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z]) ?", "", text)
    text = re.sub(r",\\! ?", ",", text)
    text = _FRAC.sub(lambda m: f"\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = re.sub(r"\\sqrt *([0-9])", r"\\sqrt{\1}", text)
    return re.sub(r"([\^_]) *(\\circ|[0-9A-Za-z])", r"\1{\2}", text).strip()


@cache
def value_of(text: str) -> Fraction | None:
    """The rational that an answer is; None if it is none."""
    power = re.fullmatch(r"10\^\{?(-?[0-9]{1,2})\}?", tidy(text))
    return Fraction(10) ** int(power[1]) if power else number(tidy(text))


def number(text: str) -> Fraction | None:
    """The rational that a tidy answer is, without its unit; None if it is none."""
    match = _NUMBER.fullmatch(_UNIT.sub("", text).removeprefix("\\$"))
    if not match:
        return None
    plain = match["decimal"] or match["ratio"]
    if plain:
        value = Fraction(plain.replace(",", ""))
    else:
        fraction = Fraction(int(match["numerator"]), int(match["denominator"]))
        value = int(match["whole"] or 0) + fraction
    return -value if match["sign"] else value


def decimal(value: Fraction) -> str | None:
    """The finite decimal expansion; None if there is none."""
    for places in range(_MAX_PLACES + 1):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = str(int(abs(scaled))).zfill(places + 1)
            point = len(digits) - places
            text = digits[:point] + "." * bool(places) + digits[point:]
            return "-" * (value < 0) + text
    return None
