"""Ways to rewrite a tidy LaTeX answer that is no number, such that its value stays."""

from __future__ import annotations

import re
from collections.abc import Callable

from voter.values import decimal, number

Rewriting = Callable[[str], str]
"""A text that it does not apply to stays as it is."""

_PART = re.compile(  # a number that is a whole part of a tuple, list or matrix
    r"(^|[(\[,&]|\\\{|\\\\|\{pmatrix\})( *)"
    r"(-?(?:\\frac\{[0-9]+\}\{[0-9]+\}|[0-9]+/[0-9]+|[0-9]+))"
    r"(?= *(?:$|[)\],&]|\\\\|\\\}|\\end))"
)
_OPERATOR = re.compile(r"(?<=[^\s(\[,{^_=+\-]) *([-+=]) *(?=[^\s)])")
_SUM = re.compile(r"([^-+=,()\[\]&]+?) *([-+]) *([^-+=,()\[\]&]+)")
_FACTOR = r"(?:\\sqrt|\\pi|\\cot|[A-Za-z(])"
_LIST = r"(?P<first>-?[0-9]+)(?P<middle>(?:, ?-?[0-9]+)*), ?(?P<last>-?[0-9]+)"
_ROOT = r"\\sqrt\{([0-9]+)\}"
_BASED = r"([0-9]+)_\{([0-9])\}"
_NO_MATRIX = r"\A(?!.*matrix)"
_INTERVAL = r"[(\[][^()\[\]]*\\infty[^()\[\]]*[)\]]|.*\\cup.*|\([^()]*\]"


def _replace_whole(pattern: str, new: str) -> Rewriting:
    """The rewriting of an answer that `pattern` matches as a whole."""
    return lambda text: re.sub(rf"\A(?:{pattern})\Z", new, text)


def _replace_all(*replacements: tuple[str, str], unless: str = "") -> Rewriting:
    """The rewriting of all matches of patterns, in an answer without a match of `unless`."""

    def rewrite(text: str) -> str:
        if unless and re.search(unless, text):
            return text
        for pattern, new in replacements:
            text = re.sub(pattern, new, text)
        return text

    return rewrite


def _replace_parts(text: str, rewrite: Rewriting) -> str:
    """The rewriting of the numbers that are parts of a tuple, list or matrix."""
    return _PART.sub(lambda m: m[1] + m[2] + rewrite(m[3]), text)


def _slash_fractions(text: str) -> str:
    fraction = r"\\frac\{([0-9]+)\}\{([0-9]+)\}"
    return _replace_parts(text, lambda part: re.sub(fraction, r"\1/\2", part))


def _write_decimals(text: str) -> str:
    def rewrite(part: str) -> str:
        value = number(part)
        assert value is not None
        return decimal(value) or part

    return _replace_parts(text, rewrite)


def _append_point_zero(text: str) -> str:
    return _replace_parts(text, lambda part: part + ".0" if part.lstrip("-").isdigit() else part)


def _remove_spaces(text: str) -> str:
    r"""Removes the spaces that mean nothing, except those in \text."""
    parts = re.split(r"(\\(?:text|mbox)\{[^{}]*\})", text)
    spaces = r"(\\[A-Za-z]+) +(?![A-Za-z])|(?<![A-Za-z\\]) +|(?<!\\)(?<=[A-Za-z]) +(?![A-Za-z])"
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(spaces, r"\1", parts[i])
    return "".join(parts)


def _space_operators(text: str) -> str:
    return _OPERATOR.sub(r" \1 ", text)


def _multiply_root(text: str) -> str:
    match = re.fullmatch(f"([0-9]+) ?{_ROOT}", text)
    return f"\\sqrt{{{int(match[1]) ** 2 * int(match[2])}}}" if match else text


def _reorder_sum(text: str) -> str:
    """a + b as b + a, if it is the whole answer."""
    match = _SUM.fullmatch(text)
    if not match or "\\begin" in text or "\\pm" in text:
        return text
    if match[1].count("{") != match[1].count("}"):
        return text
    sign = "-" if match[2] == "-" else ""
    return f"{sign}{match[3].strip()} + {match[1]}"


def _write_out_plus_minus(text: str) -> str:
    if text.count("\\pm") != 1 or "," in text:
        return text
    return text.replace("\\pm", "+") + ", " + text.replace("\\pm", "-")


def _write_inequality(text: str) -> str:
    match = re.fullmatch(r"(?:x \\in )?([(\[])([^,()]+), *([^,()]+)([)\]])", text)
    if not match:
        return text
    opening, low, high, closing = match.groups()
    if "\\infty" not in text and opening + closing == "()":
        return text  # (a,b) is a point as often as an interval.
    if "\\infty" in low and "\\infty" in high:
        return "x"
    below = "\\le" if closing == "]" else "<"
    above = "\\ge" if opening == "[" else ">"
    if "\\infty" in low:
        return f"x {below} {high}"
    if "\\infty" in high:
        return f"x {above} {low}"
    above_low = "\\le" if opening == "[" else "<"
    return f"{low} {above_low} x {below} {high}"


REWRITINGS: dict[str, Rewriting] = {
    "tidy": str,
    "no spaces": _remove_spaces,
    "spaces around operators": _space_operators,
    "spaces after commas": _replace_all((r", *", ", ")),
    "spaces inside brackets": _replace_whole(r"([(\[])(.*)([)\]])", r"\1 \2 \3"),
    "\\, after commas": _replace_all((r", *", r",\\, ")),
    "\\left \\right": _replace_all((r"([(\[])", r"\\left\1"), (r"([)\]])", r"\\right\1")),
    "\\left\\{ \\right\\}": _replace_all((r"\\\{", r"\\left\\{"), (r"\\\}", r"\\right\\}")),
    "\\bigl \\bigr": _replace_all((r"([(\[])", r"\\bigl\1"), (r"([)\]])", r"\\bigr\1")),
    "\\dfrac": _replace_all((r"\\frac", r"\\dfrac")),
    "\\tfrac": _replace_all((r"\\frac", r"\\tfrac")),
    "\\frac without braces": _replace_all((r"\\frac\{([0-9])\}\{([0-9])\}", r"\\frac\1\2")),
    "n/d in a list": _slash_fractions,
    "decimals in a list": _write_decimals,
    "n.0 in a list": _append_point_zero,
    "x/d of \\frac{x}{d}": _replace_whole(
        r"\\frac\{([^-+{}]*(?:\{[^{}]*\})?)\}\{([0-9]+|\\pi)\}", r"\1/\2"
    ),
    "(x+y)/d": _replace_whole(r"\\frac\{([^{}]*[-+][^{}]*)\}\{([0-9]+)\}", r"(\1)/\2"),
    "(1/d)x of \\frac{x}{d}": _replace_whole(
        r"(-?)\\frac\{(\\pi|\\sqrt\{[0-9]+\})\}\{([0-9]+)\}", r"\1\\frac{1}{\3}\2"
    ),
    "(n/d)x of \\frac{nx}{d}": _replace_whole(
        r"\\frac\{([0-9]+)(\\pi|\\sqrt\{[0-9]+\})\}\{([0-9]+)\}", r"\\frac{\1}{\3}\2"
    ),
    "unreduced root": _replace_whole(r"\\frac\{\\sqrt\{3\}\}\{3\}", r"\\frac{1}{\\sqrt{3}}"),
    "root multiplied out": _multiply_root,
    "power without braces": _replace_all((r"([\^_])\{([0-9A-Za-z])\}", r"\1\2")),
    "\\sqrt2": _replace_all((r"\\sqrt\{([0-9])\}", r"\\sqrt\1")),
    "\\sqrt 2": _replace_all((r"\\sqrt\{([0-9])\}", r"\\sqrt \1")),
    "space before \\sqrt \\pi": _replace_all((r"([0-9]) ?(\\sqrt|\\pi)", r"\1 \2")),
    "\\, before \\sqrt \\pi": _replace_all((r"([0-9]) ?(\\sqrt|\\pi)", r"\1\\,\2")),
    "\\cdot": _replace_all((rf"([0-9]) ?({_FACTOR})", r"\1 \\cdot \2"), unless="text|="),
    "\\times": _replace_all((r"([0-9]) ?(\\sqrt|\\pi)", r"\1 \\times \2")),
    "*": _replace_all((r"([0-9]) ?(\\sqrt|\\pi|[a-z])", r"\1*\2"), unless="text|="),
    "π": _replace_all((r" ?\\pi ?", "π")),
    "sum reordered": _reorder_sum,
    "product reordered": _replace_whole(r"(\([^()]*\))(\([^()]*\))", r"\2\1"),
    "\\pm written out": _write_out_plus_minus,
    "list in braces": _replace_whole(_LIST, r"\\{\g<0>\\}"),
    "list in brackets": _replace_whole(_LIST, r"(\g<0>)"),
    "list with and": _replace_whole(_LIST, r"\g<first>\g<middle> \\text{ and } \g<last>"),
    "list reordered": _replace_whole(_LIST, r"\g<last>\g<middle>, \g<first>"),
    "+\\infty": _replace_all((r"(?<!-)\\infty", r"+\\infty")),
    "x \\in interval": _replace_whole(_INTERVAL, r"x \\in \g<0>"),
    "interval without x \\in": _replace_all((r"^x \\in ", "")),
    "inequality": _write_inequality,
    "base without braces": _replace_whole(_BASED, r"\1_\2"),
    "base in \\text": _replace_whole(_BASED, r"\1_{\\text{\2}}"),
    "(digits)_base": _replace_whole(_BASED, r"(\1)_{\2}"),
    "right-hand side alone": _replace_all((r"^[xy] ?= ?(?=[^=]*$)", "")),
    "f(x) =": _replace_all((r"^(y ?= ?)?(?=[^=]*x[^=]*$)", "f(x) = "), unless=r"\\"),
    "y =": _replace_all((r"^(?=[^=]*x[^=]*$)", "y = "), unless=r"\\"),
    "x =": _replace_all(
        (r"^", "x = "), unless=r"[=,(]|(?<![A-Za-z\\])[a-z](?![A-Za-z])|text|matrix"
    ),
    "n =": _replace_all((r"^x ?=", "n =")),
    "bmatrix": _replace_all((r"pmatrix", "bmatrix")),
    "matrix without spaces": _replace_all((r" *(\\\\|&) *", r"\1")),
    "matrix on lines": _replace_all((r" *\\\\ *", r" \\\\\n"), (r"\{pmatrix\} ", "{pmatrix}\n")),
    "matrix with a last \\\\": _replace_all((r"\\end", r"\\\\ \\end")),
    "\\frac in a matrix": _replace_all(
        (r"([0-9]+)/([0-9]+)", r"\\frac{\1}{\2}"), unless=_NO_MATRIX
    ),
    "\\dfrac in a matrix": _replace_all(
        (r"([0-9]+)/([0-9]+)", r"\\dfrac{\1}{\2}"), unless=_NO_MATRIX
    ),
}
