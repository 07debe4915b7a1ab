"""The ways in which a language model writes a rational number, each with a name."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from voter.values import decimal

Spelling = tuple[str, str]
"""The name of what was done, and the text."""

THOUSANDS = {
    ",": ",",
    "{,}": "{,}",
    ",\\!": ",\\!",
    ",\\! ": ",\\!",
    "\\,": "\\,",
    "\\ ": "space",
    " ": "space",
}
"""Separator of thousands -> its name."""

UNITS = (
    "\\text{ cm}",
    "\\text{ inches}",
    " \\text{ units}",
    "\\,\\text{cm}^2",
    " \\mathrm{ cm}",
    "\\mbox{ cm}^3",
    " cm",
    "\\ \\text{square units}",
    " \\text{ hours}",
)
DEGREES = ("^\\circ", "^{\\circ}", "°", " \\text{ degrees}", " degrees")


def number_spellings(value: Fraction) -> Iterator[Spelling]:
    """The ways to write a rational, without its unit."""
    sign = "-" * (value < 0)
    n, d = abs(value).as_integer_ratio()
    yield from integer_spellings(sign, n) if d == 1 else fraction_spellings(sign, n, d)
    finite = decimal(abs(value))
    if finite:
        yield from decimal_spellings(sign, abs(value), finite)
    if sign:
        yield "unicode minus", "\u2212" + (finite or f"{n}/{d}")
        yield "space after the sign", "- " + (finite or f"\\frac{{{n}}}{{{d}}}")
    else:
        yield "plus sign", "+" + (finite or f"\\frac{{{n}}}{{{d}}}")


def integer_spellings(sign: str, n: int) -> Iterator[Spelling]:
    for text in (f"{n}.0", f"{n}.00", f"{n}."):
        yield "decimal point", sign + text
    yield "leading zeros", f"{sign}{n:03d}"
    for factor in (2, 3):
        yield "n/d of an integer", f"{sign}{factor * n}/{factor}"
        yield "\\frac of an integer", f"{sign}\\frac{{{factor * n}}}{{{factor}}}"
    yield "n/1", f"{sign}\\frac{{{n}}}{{1}}"
    if n >= 1000:
        grouped = f"{n:,}"
        for separator, name in THOUSANDS.items():
            yield f"thousands {name}", sign + grouped.replace(",", separator)
        yield "thousands ,", f"{sign}{grouped}.0"
    if n % 100 == 0 and n:
        yield from _scientific(sign, str(n).rstrip("0"), len(str(n)) - 1)


def _scientific(sign: str, digits: str, power: int) -> Iterator[Spelling]:
    mantissa = _mantissa(digits)
    yield "scientific", f"{sign}{mantissa} \\times 10^{power}"
    yield "scientific", f"{sign}{mantissa}\\times10^{{{power}}}"
    yield "scientific", f"{sign}{mantissa}\\cdot 10^{{{power}}}"
    yield "e notation", f"{sign}{mantissa}e{power}"


def _mantissa(digits: str) -> str:
    return f"{digits[0]}.{digits[1:]}" if digits[1:] else digits


def fraction_spellings(sign: str, n: int, d: int) -> Iterator[Spelling]:
    for name in ("\\frac", "\\dfrac", "\\tfrac"):
        yield name, f"{sign}{name}{{{n}}}{{{d}}}"
    yield "\\frac with spaces", f"{sign}\\frac{{ {n} }}{{ {d} }}"
    yield "n/d", f"{sign}{n}/{d}"
    yield "n/d", f"{sign}{n} / {d}"
    yield "(n/d)", f"{sign}({n}/{d})"
    yield "{n}/{d}", f"{sign}{{{n}}}/{{{d}}}"
    yield "\\over", f"{sign}{{{n} \\over {d}}}"
    if n < 10 and d < 10:
        yield "\\frac without braces", f"{sign}\\frac{n}{d}"
        yield "\\frac without braces", f"{sign}\\frac {n}{d}"
        yield "\\frac without braces", f"{sign}\\dfrac{n}{d}"
    if n < 10 <= d:
        yield "\\frac without braces", f"{sign}\\frac{n}{{{d}}}"
    if d < 10 <= n:
        yield "\\frac without braces", f"{sign}\\frac{{{n}}}{d}"
    for factor in (2, 3):
        yield "unreduced", f"{sign}\\frac{{{factor * n}}}{{{factor * d}}}"
        yield "unreduced", f"{sign}{factor * n}/{factor * d}"
    if sign:
        yield "sign inside \\frac", f"\\frac{{-{n}}}{{{d}}}"
        yield "sign in the denominator", f"\\frac{{{n}}}{{-{d}}}"
        yield "n/d", f"(-{n})/{d}"
    if n > d:
        whole, rest = divmod(n, d)
        yield "mixed \\frac", f"{sign}{whole}\\frac{{{rest}}}{{{d}}}"
        yield "mixed \\frac", f"{sign}{whole} \\frac{{{rest}}}{{{d}}}"
        yield "mixed \\frac", f"{sign}{whole}\\,\\tfrac{{{rest}}}{{{d}}}"
        yield "mixed a b/c", f"{sign}{whole} {rest}/{d}"


def decimal_spellings(sign: str, value: Fraction, finite: str) -> Iterator[Spelling]:
    """value: without its sign. finite: its decimal expansion."""
    yield "decimal", sign + finite
    if value.denominator == 1:
        return
    yield "trailing zero", f"{sign}{finite}0"
    if finite.startswith("0."):
        yield "decimal without 0", sign + finite[1:]
    if value < Fraction(1, 1000):
        digits = str(int(finite[2:]))
        power = len(finite[2:]) - len(digits) + 1
        mantissa = _mantissa(digits)
        yield "scientific", f"{sign}{mantissa} \\times 10^{{-{power}}}"
        yield "scientific", f"{sign}{mantissa} \\times 10^-{power}"
        yield "e notation", f"{sign}{mantissa}e-{power}"


def unit_spellings(text: str) -> Iterator[Spelling]:
    """What a model leaves after, or before, a number."""
    for unit in DEGREES:
        yield "degrees", text + unit
    yield "currency", f"\\${text}"
    yield "percent", f"{text}\\%"
    yield "percent", f"{text}%"
    for unit in UNITS:
        yield "unit", text + unit
