"""Texts that look like a gold answer and are other values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from voter.number_spellings import Spelling
from voter.values import decimal, number, tidy, value_of


def near_misses(gold: str) -> dict[str, str]:
    """Texts of other values, each with the name of what was changed."""
    text = tidy(gold)
    value = value_of(gold)
    word = re.fullmatch(r"\\text\{\(?([A-Za-z]+)\)?\}", text)
    if value is not None:
        made = [(name, other) for name, other in other_numbers(value) if number(other) != value]
    elif word:
        made = [
            ("another word", f"\\text{{{word[1][:-1] or 'X'}}}"),
            ("another word", f"\\text{{not {word[1]}}}"),
        ]
    else:
        made = [(name, change(text)) for name, change in OTHER_VALUES.items()]
    return {other: name for name, other in reversed(made) if other not in (text, gold)}


def other_numbers(value: Fraction) -> Iterator[Spelling]:
    """Numbers that look like `value`. A few of them may be equal to it."""
    sign = "-" * (value < 0)
    n, d = abs(value).as_integer_ratio()
    finite = decimal(abs(value)) or f"{n}/{d}"
    yield "sign", finite if sign else f"-{finite}"
    yield "a digit more", f"{sign}{finite}1"
    yield "a digit more", f"{sign}1{finite}"
    yield "off by one", decimal(value + 1) or f"{sign}\\frac{{{n + 1}}}{{{d}}}"
    yield "decimal point moved", decimal(value / 10) or f"{sign}\\frac{{{n}}}{{{10 * d}}}"
    yield "another number after it", f"{sign}{finite} 5"
    yield "list", f"{sign}{finite}, 5"
    yield "base", f"{sign}{finite}_8"
    yield "million", f"{sign}{finite}\\text{{ million}}"
    yield "times a letter", f"{sign}{finite}x"
    yield from _other_integers(sign, n) if d == 1 else _other_fractions(sign, n, d, value)


def _other_integers(sign: str, n: int) -> Iterator[Spelling]:
    yield "one over it", f"{sign}\\frac{{1}}{{{n}}}" if n else "1"
    if n >= 1000:
        grouped = f"{n:,}"
        if ",0" not in grouped:  # (1,050) is one number
            yield "part of a tuple", f"({grouped})"
        yield "list", grouped.replace(",", ", ")
        yield "decimal point moved", grouped.replace(",", ".", 1)
    if n >= 10:
        yield "digits as a list", ", ".join(str(n))
        yield "digits apart", " ".join(str(n))
        yield "power", f"{str(n)[:-1]}^{str(n)[-1]}"
        yield "index", f"{str(n)[:-1]}_{str(n)[-1]}"


def _other_fractions(sign: str, n: int, d: int, value: Fraction) -> Iterator[Spelling]:
    yield "fraction turned over", f"{sign}\\frac{{{d}}}{{{n}}}"
    yield "denominator off by one", f"{sign}\\frac{{{n}}}{{{d + 1}}}"
    yield "rounded", f"{float(value):.2f}"
    yield "rounded", f"{float(value):.4f}"
    yield "joined", f"{sign}{n}{d}"
    yield "tuple", f"({sign}{n},{d})"
    if n > d:
        yield "sum for a mixed number", f"{sign}{n // d} + {n % d}"
        yield "mixed without its fraction", f"{sign}{n // d}{n % d}/{d}"


def _replace(pattern: str, new: str | Callable[[re.Match], str]) -> Callable[[str], str]:
    return lambda text: re.sub(pattern, new, text)


def _replace_first(pattern: str, new: str | Callable[[re.Match], str]) -> Callable[[str], str]:
    return lambda text: re.sub(pattern, new, text, count=1)


def _change_sign(text: str) -> str:
    return text[1:] if text.startswith("-") else f"-{text}"


def _change_bracket(text: str) -> str:
    return text.replace("(", "[") if text.startswith("(") else text.replace("[", "(")


def _change_closing_bracket(text: str) -> str:
    return text.replace(")", "]") if text.endswith(")") else text.replace("]", ")")


def _row_for_column(text: str) -> str:
    return text if "&" in text else text.replace("\\\\", "&")


OTHER_VALUES: dict[str, Callable[[str], str]] = {
    "a digit more": _replace_first(r"([1-9])(?![0-9])", r"\g<1>0"),
    "sign": _change_sign,
    "inner sign": _replace_first(
        r"(?<=[^({,=\[ ]) ?([-+]) ?", lambda m: "-" if m[1] == "+" else "+"
    ),
    "another bracket": _change_bracket,
    "another closing bracket": _change_closing_bracket,
    "parts swapped": _replace(r"^(.*[(\[])([^,()]+), *([^,()]+)([)\]])$", r"\1\3,\2\4"),
    "rows swapped": _replace(
        r"\{pmatrix\} (.*?) \\\\ (.*?) (\\\\|\\end)", r"{pmatrix} \2 \\\\ \1 \3"
    ),
    "a row for a column": _row_for_column,
    "power out": _replace_first(r"\^\{([0-9])\}", r"\1"),
    "power over more": _replace_first(r"\^\{([0-9])\} *[-+] *([0-9]*)", r"^{\g<1>\2}"),
    "case of a letter": _replace(
        r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z]| ?=| ?\\in)", lambda m: m[0].swapcase()
    ),
    "root left out": _replace(r"\\sqrt\{([0-9]+)\}", r"\1"),
    "root over more": _replace(r"([0-9]+) ?\\sqrt\{([0-9]+)\}", r"\\sqrt{\1\2}"),
    "\\pi left out": _replace(r"(?<=[0-9]) ?\\pi", ""),
    "fraction turned over": _replace(r"\\frac\{(.*)\}\{(.*)\}", r"\\frac{\2}{\1}"),
    "base left out": _replace(r"^([0-9]+)_\{([0-9])\}$", r"\1"),
    "another base": _replace(r"^([0-9]+)_\{([0-9])\}$", lambda m: f"{m[1]}_{{{int(m[2]) - 1}}}"),
    "comma for a part": _replace(r"^\((-?[0-9]+),(-?[0-9]+)\)$", r"\1\2"),
}
"""Ways to change the value of a tidy LaTeX answer that is no number."""
