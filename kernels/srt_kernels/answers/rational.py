r"""A number as LaTeX or text writes it -> its lowest terms. Plain Python; kernel/rational.py is its
twin.

A number is one of `12`, `-.5`, `3/4`, `\frac{3}{4}`, `1\frac{3}{4}`, `1 3/4`, `10^{5}`, `2e-3` and
`2\times10^{5}`. Its bytes are read from left to right. What a byte means depends on the byte alone
(MEANINGS).
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

LIMIT = 10**18
"""Numerators and denominators are below it. So they fit int64."""

MAX_SHIFT = 18  # greater powers of ten are above LIMIT
MAX_EXPONENT = 9999  # greater exponents are read as this one: the number is beyond LIMIT anyway

# What a byte of a number means.
NONE, DIGIT, POINT, MINUS, OVER, MIXED, BRACE, TIMES, POWER, EXPONENT = range(10)

_MEANING_OF = (
    dict.fromkeys(b"0123456789", DIGIT)
    | {ord("."): POINT, ord("-"): MINUS, ord("/"): OVER, ord("}"): BRACE, ord("^"): POWER}
    | dict.fromkeys(b" f", MIXED)  # 1 3/4 and the f of 1\frac{3}{4}
    | dict.fromkeys(b"mo*", TIMES)  # the m of \times, the o of \cdot
    | dict.fromkeys(b"eE", EXPONENT)
)
MEANINGS = [_MEANING_OF.get(byte, NONE) for byte in range(256)]
"""[256] byte -> its meaning."""

# The part of a number that a digit belongs to. TEN is the 10 of 2\times10^{5}.
NUMERATOR, DENOMINATOR, TEN, POWER_OF_TEN = range(4)


class Number(NamedTuple):
    """(whole + numerator / denominator * 10^shift), with a minus sign if `negative`."""

    whole: int
    numerator: int
    denominator: int
    shift: int
    negative: bool


def rational(number: bytes) -> bytes | None:
    r"""The number in lowest terms, as `-3/4` or `12`.

    None where it has no value (`1/0`, `1\frac{3}{2}`) or has a numerator or denominator of LIMIT or
    more.
    """
    parsed = _parse(number)
    terms = None if parsed is None else _lowest_terms(parsed)
    if parsed is None or terms is None:
        return None
    numerator, denominator = terms
    sign = b"-" if parsed.negative and numerator > 0 else b""
    fraction = b"/%d" % denominator if denominator > 1 else b""
    return b"%s%d%s" % (sign, numerator, fraction)


def _parse(number: bytes) -> Number | None:
    whole = exponent = shift = 0
    terms = [0, 1]  # numerator and denominator
    sign = exponent_sign = 1
    part = NUMERATOR
    zeros = 0  # digits of `part` that are not yet multiplied in: zeros after the point
    after_point = is_mixed = False
    for byte in number:
        meaning = MEANINGS[byte]
        if meaning == DIGIT and part == POWER_OF_TEN:
            exponent = min(10 * exponent + byte - ord("0"), MAX_EXPONENT)
        elif meaning == DIGIT and part != TEN:
            # Zeros after the point count only where another digit follows them.
            zeros += 1
            if byte > ord("0") or not after_point:
                digit = byte - ord("0")
                scale = 10 ** min(zeros, MAX_SHIFT)
                if terms[part] > (LIMIT - 1 - digit) // scale:
                    return None
                terms[part] = terms[part] * scale + digit
                if after_point:
                    shift += zeros if part == DENOMINATOR else -zeros
                zeros = 0
        elif meaning == POINT:
            after_point = True
        elif meaning == MINUS and part == POWER_OF_TEN:
            exponent_sign = -1
        elif meaning == MINUS:
            sign = -sign
        elif meaning == OVER or meaning == BRACE and part == NUMERATOR:
            part = DENOMINATOR
            terms[DENOMINATOR] = zeros = 0
            after_point = False
        elif meaning == MIXED:
            whole = terms[NUMERATOR]
            terms[NUMERATOR] = zeros = 0
            after_point = False
            is_mixed = whole > 0
        elif meaning == TIMES:
            part = TEN
        elif meaning == POWER or meaning == EXPONENT and part == NUMERATOR:
            if meaning == POWER and part == NUMERATOR:  # 10^5, where 10 is no factor
                terms[NUMERATOR] = 1
            part = POWER_OF_TEN
    numerator, denominator = terms
    if denominator == 0 or is_mixed and numerator >= denominator:
        return None
    return Number(whole, numerator, denominator, shift + exponent_sign * exponent, sign < 0)


def _lowest_terms(number: Number) -> tuple[int, int] | None:
    """Numerator and denominator without the sign; None where one of them is LIMIT or more."""
    whole, numerator, denominator, shift, _ = number
    numerator, denominator = _reduced(numerator, denominator)
    scale = 10 ** min(abs(shift), MAX_SHIFT)
    scaled = numerator if shift > 0 else denominator
    if numerator and (abs(shift) > MAX_SHIFT or scaled > (LIMIT - 1) // scale):
        return None
    if shift > 0:
        numerator *= scale
    else:
        denominator *= scale
    numerator, denominator = _reduced(numerator, denominator)
    if whole > (LIMIT - 1 - numerator) // denominator:
        return None
    return numerator + whole * denominator, denominator


def _reduced(numerator: int, denominator: int) -> tuple[int, int]:
    divisor = gcd(numerator, denominator)
    return numerator // divisor, denominator // divisor
