"""Texts that look like a gold answer and are other values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from spellings import decimal, number, tidy, value_of

OTHER_VALUES: dict[str, Callable[[str], str]] = {
    "a digit more": lambda t: re.sub(r"([1-9])(?![0-9])", r"\g<1>0", t, count=1),
    "sign": lambda t: t[1:] if t.startswith("-") else f"-{t}",
    "inner sign": lambda t: re.sub(
        r"(?<=[^({,=\[ ]) ?([-+]) ?", lambda m: "-" if m[1] == "+" else "+", t, count=1
    ),
    "another bracket": lambda t: t.replace("(", "[") if t.startswith("(") else t.replace("[", "("),
    "another closing bracket": lambda t: (
        t.replace(")", "]") if t.endswith(")") else t.replace("]", ")")
    ),
    "parts swapped": lambda t: re.sub(r"^(.*[(\[])([^,()]+), *([^,()]+)([)\]])$", r"\1\3,\2\4", t),
    "rows swapped": lambda t: re.sub(
        r"\{pmatrix\} (.*?) \\\\ (.*?) (\\\\|\\end)", r"{pmatrix} \2 \\\\ \1 \3", t
    ),
    "a row for a column": lambda t: t.replace("\\\\", "&") if "&" not in t else t,
    "power out": lambda t: re.sub(r"\^\{([0-9])\}", r"\1", t, count=1),
    "power over more": lambda t: re.sub(
        r"\^\{([0-9])\} *[-+] *([0-9]*)", r"^{\g<1>\2}", t, count=1
    ),
    "case of a letter": lambda t: re.sub(
        r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z]| ?=| ?\\in)", lambda m: m[0].swapcase(), t
    ),
    "root left out": lambda t: re.sub(r"\\sqrt\{([0-9]+)\}", r"\1", t),
    "root over more": lambda t: re.sub(r"([0-9]+) ?\\sqrt\{([0-9]+)\}", r"\\sqrt{\1\2}", t),
    "\\pi left out": lambda t: re.sub(r"(?<=[0-9]) ?\\pi", "", t),
    "fraction turned over": lambda t: re.sub(r"\\frac\{(.*)\}\{(.*)\}", r"\\frac{\2}{\1}", t),
    "base left out": lambda t: re.sub(r"^([0-9]+)_\{([0-9])\}$", r"\1", t),
    "another base": lambda t: re.sub(
        r"^([0-9]+)_\{([0-9])\}$", lambda m: f"{m[1]}_{{{int(m[2]) - 1}}}", t
    ),
    "comma for a part": lambda t: re.sub(r"^\((-?[0-9]+),(-?[0-9]+)\)$", r"\1\2", t),
}


def other_numbers(value: Fraction) -> Iterator[tuple[str, str]]:
    """Numbers that look like `value` and are not."""
    sign, (n, d) = "-" * (value < 0), abs(value).as_integer_ratio()
    finite = decimal(abs(value)) or f"{n}/{d}"
    yield "sign", finite if sign else f"-{finite}"
    for text in (f"{sign}{finite}1", f"{sign}1{finite}"):
        yield "a digit more", text
    yield "off by one", decimal(value + 1) or f"{sign}\\frac{{{n + 1}}}{{{d}}}"
    yield "decimal point moved", decimal(value / 10) or f"{sign}\\frac{{{n}}}{{{10 * d}}}"
    yield "another number after it", f"{sign}{finite} 5"
    yield "list", f"{sign}{finite}, 5"
    yield "base", f"{sign}{finite}_8"
    yield "million", f"{sign}{finite}\\text{{ million}}"
    yield "times a letter", f"{sign}{finite}x"
    if d == 1:
        yield "one over it", f"{sign}\\frac{{1}}{{{n}}}" if n else "1"
        if n >= 1000:
            grouped = f"{n:,}"
            yield "part of a tuple", f"({grouped})"
            yield "list", grouped.replace(",", ", ")
            yield "decimal point moved", grouped.replace(",", ".", 1)
        if n >= 10:
            yield "digits as a list", ", ".join(str(n))
            yield "digits apart", " ".join(str(n))
            yield "power", f"{str(n)[:-1]}^{str(n)[-1]}"
            yield "index", f"{str(n)[:-1]}_{str(n)[-1]}"
        return
    yield "fraction turned over", f"{sign}\\frac{{{d}}}{{{n}}}"
    yield "denominator off by one", f"{sign}\\frac{{{n}}}{{{d + 1}}}"
    yield "rounded", f"{float(value):.2f}"
    yield "rounded", f"{float(value):.4f}"
    yield "joined", f"{sign}{n}{d}"
    yield "tuple", f"({sign}{n},{d})"
    if n > d:
        yield "sum for a mixed number", f"{sign}{n // d} + {n % d}"
        yield "mixed without its fraction", f"{sign}{n // d}{n % d}/{d}"


def near_misses(gold: str) -> dict[str, str]:
    """Texts of other values, each with the name of what was changed."""
    text = tidy(gold)
    value, word = value_of(gold), re.fullmatch(r"\\text\{\(?([A-Za-z]+)\)?\}", text)
    if value is not None:
        made = [m for m in other_numbers(value) if number(m[1]) != value]
    elif word:
        made = [
            ("another word", f"\\text{{{word[1][:-1] or 'X'}}}"),
            ("another word", f"\\text{{not {word[1]}}}"),
        ]
    else:
        made = [(name, change(text)) for name, change in OTHER_VALUES.items()]
    return {other: name for name, other in reversed(made) if other not in (text, gold)}
