"""The ways in which a language model writes the value of a gold answer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache

_FRAC = re.compile(
    r"\\[dtc]?frac *(?:\{((?:[^{}]|\{[^{}]*\})*)\}|([0-9])) *(?:\{((?:[^{}]|\{[^{}]*\})*)\}|([0-9]))"
)
_UNIT = re.compile(
    r" ?(?:\\text\{ (?:degrees|cents)\}|\\mbox\{ ?(?:cm|inches)\}\^\{2\}|\^\{\\circ\})$"
)
_NUMBER = re.compile(
    r"(?P<sign>-?)(?:(?P<decimal>[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)|(?P<ratio>[0-9]+/0*[1-9][0-9]*)"
    r"|(?P<whole>[0-9]*) ?\\frac\{(?P<n>[0-9]+)\}\{(?P<d>[0-9]*[1-9][0-9]*)\})"
)
_PART = re.compile(  # a number that is all of a tuple's, list's or matrix's part
    r"(^|[(\[,&]|\\\{|\\\\|\{pmatrix\})( *)(-?(?:\\frac\{[0-9]+\}\{[0-9]+\}|[0-9]+/[0-9]+|[0-9]+))"
    r"(?= *(?:$|[)\],&]|\\\\|\\\}|\\end))"
)
_OPERATOR = re.compile(r"(?<=[^\s(\[,{^_=+\-]) *([-+=]) *(?=[^\s)])")
_TERMS = re.compile(r"([^-+=,()\[\]&]+?) *([-+]) *([^-+=,()\[\]&]+)")
_CLOSED = r"(?:\\sqrt|\\pi|\\cot|[A-Za-z(])"


def tidy(text: str) -> str:
    r"""One LaTeX for a gold answer, from which its other spellings are written: \frac{a}{b}, ^{2}, no \left, no \!."""
    text = re.sub(r",\\! ?", ",", re.sub(r"\\(?:left|right)(?![A-Za-z]) ?", "", text))
    text = _FRAC.sub(lambda m: f"\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = re.sub(r"\\sqrt *([0-9])", r"\\sqrt{\1}", text)
    return re.sub(r"([\^_]) *(\\circ|[0-9A-Za-z])", r"\1{\2}", text).strip()


def number(text: str) -> Fraction | None:
    """The rational that a tidy answer is, units aside; None where it is none."""
    match = _NUMBER.fullmatch(_UNIT.sub("", text).removeprefix("\\$"))
    if not match:
        return None
    plain = match["decimal"] or match["ratio"]
    value = (
        Fraction(plain.replace(",", ""))
        if plain
        else int(match["whole"] or 0) + Fraction(int(match["n"]), int(match["d"]))
    )
    return -value if match["sign"] else value


@cache
def value_of(text: str) -> Fraction | None:
    power = re.fullmatch(r"10\^\{?(-?[0-9]{1,2})\}?", tidy(text))
    return Fraction(10) ** int(power[1]) if power else number(tidy(text))


def decimal(value: Fraction) -> str | None:
    """The finite decimal expansion, None where there is none."""
    for places in range(13):
        if (value * 10**places).denominator == 1:
            digits = str(int(abs(value) * 10**places)).zfill(places + 1)
            cut = len(digits) - places
            text = digits[:cut] + "." * bool(places) + digits[cut:]
            return "-" * (value < 0) + text
    return None


THOUSANDS = {
    ",": ",",
    "{,}": "{,}",
    ",\\!": ",\\!",
    ",\\! ": ",\\!",
    "\\,": "\\,",
    "\\ ": "space",
    " ": "space",
}


def integer_spellings(sign: str, n: int) -> Iterator[tuple[str, str]]:
    for text in (f"{n}.0", f"{n}.00", f"{n}."):
        yield "decimal point", sign + text
    yield "leading zeros", f"{sign}{n:03d}"
    for k in (2, 3):
        yield "n/d of an integer", f"{sign}{k * n}/{k}"
        yield "\\frac of an integer", f"{sign}\\frac{{{k * n}}}{{{k}}}"
    yield "n/1", f"{sign}\\frac{{{n}}}{{1}}"
    if n >= 1000:
        grouped = f"{n:,}"
        for comma, name in THOUSANDS.items():
            yield f"thousands {name}", sign + grouped.replace(",", comma)
        yield "thousands ,", f"{sign}{grouped}.0"
    if n % 100 == 0 and n:
        digits = str(n).rstrip("0")
        power = len(str(n)) - 1
        mantissa = digits[0] + ("." + digits[1:] if digits[1:] else "")
        for text in (
            f"{mantissa} \\times 10^{power}",
            f"{mantissa}\\times10^{{{power}}}",
            f"{mantissa}\\cdot 10^{{{power}}}",
        ):
            yield "scientific", sign + text
        yield "e notation", f"{sign}{mantissa}e{power}"


def fraction_spellings(sign: str, n: int, d: int) -> Iterator[tuple[str, str]]:
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
    for k in (2, 3):
        yield "unreduced", f"{sign}\\frac{{{k * n}}}{{{k * d}}}"
        yield "unreduced", f"{sign}{k * n}/{k * d}"
    if sign:
        yield "sign inside \\frac", f"\\frac{{-{n}}}{{{d}}}"
        yield "sign in the denominator", f"\\frac{{{n}}}{{-{d}}}"
        yield "n/d", f"(-{n})/{d}"
    if n > d:
        yield "mixed \\frac", f"{sign}{n // d}\\frac{{{n % d}}}{{{d}}}"
        yield "mixed \\frac", f"{sign}{n // d} \\frac{{{n % d}}}{{{d}}}"
        yield "mixed \\frac", f"{sign}{n // d}\\,\\tfrac{{{n % d}}}{{{d}}}"
        yield "mixed a b/c", f"{sign}{n // d} {n % d}/{d}"


def number_spellings(value: Fraction) -> Iterator[tuple[str, str]]:
    """The ways to write a rational, without regard to its unit."""
    sign, (n, d) = "-" * (value < 0), abs(value).as_integer_ratio()
    yield from integer_spellings(sign, n) if d == 1 else fraction_spellings(sign, n, d)
    finite = decimal(abs(value))
    if finite:
        yield "decimal", sign + finite
        if d > 1:
            yield "trailing zero", f"{sign}{finite}0"
            if finite.startswith("0."):
                yield "decimal without 0", sign + finite[1:]
        if d > 1 and abs(value) < Fraction(1, 1000):
            mantissa = str(int(finite[2:]))
            power = len(finite[2:]) - len(mantissa) + 1
            text = f"{mantissa[0]}.{mantissa[1:]}" if mantissa[1:] else mantissa
            yield "scientific", f"{sign}{text} \\times 10^{{-{power}}}"
            yield "scientific", f"{sign}{text} \\times 10^-{power}"
            yield "e notation", f"{sign}{text}e-{power}"
    if sign:
        yield "unicode minus", "\u2212" + (finite or f"{n}/{d}")
        yield "space after the sign", "- " + (finite or f"\\frac{{{n}}}{{{d}}}")
    else:
        yield "plus sign", "+" + (finite or f"\\frac{{{n}}}{{{d}}}")


UNITS = (
    "\\text{ cm}",
    "\\text{ inches}",
    " \\text{ units}",
    "\\,\\text{cm}^2",
    " \\mathrm{ cm}",
    "\\mbox{ cm}^3",
    " cm",
)
UNITS += ("\\ \\text{square units}", " \\text{ hours}")


def unit_spellings(text: str) -> Iterator[tuple[str, str]]:
    """What a model leaves after, or before, a number."""
    for unit in ("^\\circ", "^{\\circ}", "°", " \\text{ degrees}", " degrees"):
        yield "degrees", text + unit
    yield "currency", f"\\${text}"
    yield "percent", f"{text}\\%"
    yield "percent", f"{text}%"
    for unit in UNITS:
        yield "unit", text + unit


def _compact(text: str) -> str:
    """Without the spaces that mean nothing, those in \\text aside."""
    parts = re.split(r"(\\(?:text|mbox)\{[^{}]*\})", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(
            r"(\\[A-Za-z]+) +(?![A-Za-z])|(?<![A-Za-z\\]) +|(?<!\\)(?<=[A-Za-z]) +(?![A-Za-z])",
            r"\1",
            parts[i],
        )
    return "".join(parts)


def _parts(text: str, rewrite: Callable[[str], str]) -> str:
    return _PART.sub(lambda m: m[1] + m[2] + rewrite(m[3]), text)


def _slashed(text: str) -> str:
    return _parts(text, lambda part: re.sub(r"\\frac\{([0-9]+)\}\{([0-9]+)\}", r"\1/\2", part))


def _decimals(text: str) -> str:
    return _parts(text, lambda part: decimal(number(part)) or part)


def _point_zero(text: str) -> str:
    return _parts(text, lambda part: part + ".0" if part.lstrip("-").isdigit() else part)


def _reordered(text: str) -> str:
    """a + b as b + a, where it is all of the answer."""
    match = _TERMS.fullmatch(text)
    if (
        not match
        or "\\begin" in text
        or "\\pm" in text
        or match[1].count("{") != match[1].count("}")
    ):
        return text
    return (
        f"{match[3].strip()} + {match[1]}"
        if match[2] == "+"
        else f"-{match[3].strip()} + {match[1]}"
    )


def _plus_minus(text: str) -> str:
    if text.count("\\pm") != 1 or "," in text:
        return text
    return text.replace("\\pm", "+") + ", " + text.replace("\\pm", "-")


def _inequality(text: str) -> str:
    match = re.fullmatch(r"(?:x \\in )?([(\[])([^,()]+), *([^,()]+)([)\]])", text)
    if not match or "\\infty" not in text and match[1] + match[4] == "()":
        return text  # (a,b) is a point as often as an interval
    left = "" if "\\infty" in match[2] else match[2] + (" \\le " if match[1] == "[" else " < ")
    right = "" if "\\infty" in match[3] else (" \\le " if match[4] == "]" else " < ") + match[3]
    if not left:
        return "x" + right
    return f"{left}x{right}" if right else "x" + (" \\ge " if match[1] == "[" else " > ") + match[2]


def _whole(pattern: str, new: str | Callable[[re.Match], str]) -> Callable[[str], str]:
    """The rewriting of an answer that `pattern` matches as a whole."""
    return lambda text: re.sub(rf"\A(?:{pattern})\Z", new, text)


def _anywhere(*replacements: tuple[str, str], unless: str = "") -> Callable[[str], str]:
    def rewrite(text: str) -> str:
        if unless and re.search(unless, text):
            return text
        for pattern, new in replacements:
            text = re.sub(pattern, new, text)
        return text

    return rewrite


_LIST = r"(?P<first>-?[0-9]+)(?P<middle>(?:, ?-?[0-9]+)*), ?(?P<last>-?[0-9]+)"
_ROOT = r"\\sqrt\{([0-9]+)\}"
_BASED = r"([0-9]+)_\{([0-9])\}"
_INTERVAL = r"[(\[][^()\[\]]*\\infty[^()\[\]]*[)\]]|.*\\cup.*|\([^()]*\]"
REWRITINGS: dict[str, Callable[[str], str]] = {  # of a tidy LaTeX answer that is no number
    "tidy": str,
    "no spaces": _compact,
    "spaces around operators": lambda t: _OPERATOR.sub(r" \1 ", t),
    "spaces after commas": _anywhere((r", *", ", ")),
    "spaces inside brackets": _whole(r"([(\[])(.*)([)\]])", r"\1 \2 \3"),
    "\\, after commas": _anywhere((r", *", r",\\, ")),
    "\\left \\right": _anywhere((r"([(\[])", r"\\left\1"), (r"([)\]])", r"\\right\1")),
    "\\left\\{ \\right\\}": _anywhere((r"\\\{", r"\\left\\{"), (r"\\\}", r"\\right\\}")),
    "\\bigl \\bigr": _anywhere((r"([(\[])", r"\\bigl\1"), (r"([)\]])", r"\\bigr\1")),
    "\\dfrac": _anywhere((r"\\frac", r"\\dfrac")),
    "\\tfrac": _anywhere((r"\\frac", r"\\tfrac")),
    "\\frac without braces": _anywhere((r"\\frac\{([0-9])\}\{([0-9])\}", r"\\frac\1\2")),
    "n/d in a list": _slashed,
    "decimals in a list": _decimals,
    "n.0 in a list": _point_zero,
    "x/d of \\frac{x}{d}": _whole(
        r"\\frac\{([^-+{}]*(?:\{[^{}]*\})?)\}\{([0-9]+|\\pi)\}", r"\1/\2"
    ),
    "(x+y)/d": _whole(r"\\frac\{([^{}]*[-+][^{}]*)\}\{([0-9]+)\}", r"(\1)/\2"),
    "(1/d)x of \\frac{x}{d}": _whole(
        r"(-?)\\frac\{(\\pi|\\sqrt\{[0-9]+\})\}\{([0-9]+)\}", r"\1\\frac{1}{\3}\2"
    ),
    "(n/d)x of \\frac{nx}{d}": _whole(
        r"\\frac\{([0-9]+)(\\pi|\\sqrt\{[0-9]+\})\}\{([0-9]+)\}", r"\\frac{\1}{\3}\2"
    ),
    "unreduced root": _whole(r"\\frac\{\\sqrt\{3\}\}\{3\}", r"\\frac{1}{\\sqrt{3}}"),
    "root multiplied out": _whole(
        f"([0-9]+) ?{_ROOT}", lambda m: f"\\sqrt{{{int(m[1]) ** 2 * int(m[2])}}}"
    ),
    "power without braces": _anywhere((r"([\^_])\{([0-9A-Za-z])\}", r"\1\2")),
    "\\sqrt2": _anywhere((r"\\sqrt\{([0-9])\}", r"\\sqrt\1")),
    "\\sqrt 2": _anywhere((r"\\sqrt\{([0-9])\}", r"\\sqrt \1")),
    "space before \\sqrt \\pi": _anywhere((r"([0-9]) ?(\\sqrt|\\pi)", r"\1 \2")),
    "\\, before \\sqrt \\pi": _anywhere((r"([0-9]) ?(\\sqrt|\\pi)", r"\1\\,\2")),
    "\\cdot": _anywhere((rf"([0-9]) ?({_CLOSED})", r"\1 \\cdot \2"), unless="text|="),
    "\\times": _anywhere((r"([0-9]) ?(\\sqrt|\\pi)", r"\1 \\times \2")),
    "*": _anywhere((r"([0-9]) ?(\\sqrt|\\pi|[a-z])", r"\1*\2"), unless="text|="),
    "π": _anywhere((r" ?\\pi ?", "π")),
    "sum reordered": _reordered,
    "product reordered": _whole(r"(\([^()]*\))(\([^()]*\))", r"\2\1"),
    "\\pm written out": _plus_minus,
    "list in braces": _whole(_LIST, r"\\{\g<0>\\}"),
    "list in brackets": _whole(_LIST, r"(\g<0>)"),
    "list with and": _whole(_LIST, r"\g<first>\g<middle> \\text{ and } \g<last>"),
    "list reordered": _whole(_LIST, r"\g<last>\g<middle>, \g<first>"),
    "+\\infty": _anywhere((r"(?<!-)\\infty", r"+\\infty")),
    "x \\in interval": _whole(_INTERVAL, r"x \\in \g<0>"),
    "interval without x \\in": _anywhere((r"^x \\in ", "")),
    "inequality": _inequality,
    "base without braces": _whole(_BASED, r"\1_\2"),
    "base in \\text": _whole(_BASED, r"\1_{\\text{\2}}"),
    "(digits)_base": _whole(_BASED, r"(\1)_{\2}"),
    "right-hand side alone": _anywhere((r"^[xy] ?= ?", "")),
    "f(x) =": _anywhere((r"^(y ?= ?)?(?=[^=]*x[^=]*$)", "f(x) = "), unless=r"\\"),
    "y =": _anywhere((r"^(?=[^=]*x[^=]*$)", "y = "), unless=r"\\"),
    "x =": _anywhere((r"^", "x = "), unless=r"[=,(]|(?<![A-Za-z\\])[a-z](?![A-Za-z])|text|matrix"),
    "n =": _anywhere((r"^x ?=", "n =")),
    "bmatrix": _anywhere((r"pmatrix", "bmatrix")),
    "matrix without spaces": _anywhere((r" *(\\\\|&) *", r"\1")),
    "matrix on lines": _anywhere((r" *\\\\ *", r" \\\\\n"), (r"\{pmatrix\} ", "{pmatrix}\n")),
    "matrix with a last \\\\": _anywhere((r"\\end", r"\\\\ \\end")),
    "\\frac in a matrix": _anywhere((r"([0-9]+)/([0-9]+)", r"\\frac{\1}{\2}")),
    "\\dfrac in a matrix": _anywhere((r"([0-9]+)/([0-9]+)", r"\\dfrac{\1}{\2}")),
}


def word_spellings(word: str) -> Iterator[tuple[str, str]]:
    for name in ("text", "textbf", "mathrm", "mathbf", "textit", "mbox", "textrm"):
        yield f"\\{name}", f"\\{name}{{{word}}}"
    yield "plain word", word
    for other in (word.lower(), word.capitalize(), word.upper()):
        yield "case of a word", other
        yield "case of a word", f"\\text{{{other}}}"
    yield "spaces inside \\text", f"\\text{{ {word} }}"
    yield "full stop inside \\text", f"\\text{{{word}.}}"


def choice_spellings(letter: str) -> Iterator[tuple[str, str]]:
    for name in ("text", "textbf", "mathrm", "mathbf"):
        yield f"\\{name}{{(C)}}", f"\\{name}{{({letter})}}"
        yield f"\\{name}{{C}}", f"\\{name}{{{letter}}}"
    for text in (
        f"({letter})",
        letter,
        f"{letter}.",
        f"(\\text{{{letter}}})",
        f"\\text{{({letter}) }}",
    ):
        yield "choice", text


WRAPPINGS = {  # of any answer
    "as it is": "{}",
    "$ $": "${}$",
    "\\( \\)": "\\({}\\)",
    "full stop": "{}.",
    "spaces": " {} ",
    "braces": "{{{}}}",
    "\\boxed": "\\boxed{{{}}}",
    "$ $ and full stop": "${}$.",
}


def spellings(gold: str, draw: random.Random) -> dict[str, str]:
    """Texts that a model may write for the value of `gold`, each with the name of what was done to it."""
    text = tidy(gold)
    value = value_of(gold)
    word, choice = (
        re.fullmatch(pattern, text)
        for pattern in (r"\\text\{([A-Za-z]+)\}", r"\\text\{\(([A-E])\)\}")
    )
    if value is not None:
        made = list(number_spellings(value))
        plain = dict(made).get("decimal") or dict(made).get("\\frac")
        made += draw.sample(list(unit_spellings(plain)), 5)
        made += [
            (f"{name} =", f"{name}{equals}{plain}")
            for name, equals in (("x", "="), ("x", " = "), ("n", " = "))
        ]
        made += [
            (f"{command} of a number", f"{command}{{{plain}}}")
            for command in ("\\text", "\\mathbf")
        ]
    elif word or choice:
        made = list(word_spellings(word[1]) if word else choice_spellings(choice[1]))
        plain = text
    else:
        made, plain = [(name, rewrite(text)) for name, rewrite in REWRITINGS.items()], text
    made += [(name, pattern.format(plain)) for name, pattern in WRAPPINGS.items()]
    cores = [
        (name, text) for name, text in made if name not in WRAPPINGS and text not in (gold, plain)
    ]
    wrappings = list(WRAPPINGS.items())[1:]
    for _ in range(4 if cores else 0):  # and some of the ways together
        (name, core), (wrapping, pattern) = draw.choice(cores), draw.choice(wrappings)
        made.append((f"{name} + {wrapping}", pattern.format(core)))
    found: dict[str, str] = {}
    for name, text in made:
        if text != gold and text.strip():
            found.setdefault(text, name)
    return found
