r"""From a completion to the key of its final answer: find the answer, bring it to a canonical form, hash the form.

Text in, 64-bit key out; equal keys are one vote. `read_answer` finds, `canonical_answer` unifies spellings,
`answer_key` hashes, and `AnswerReader` does the three for a packed batch of token ids. This is the plain-Python
specification: it decodes on the host. Every step is linear in the length of the text, also on degenerate text.

Left out on purpose: algebra (`x+1` and `1+x` are two answers), nested fractions, order in sets.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import partial
from hashlib import blake2b

import torch
from torch import Tensor

RULES = ("boxed", "tag", "last_number", "whole")

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])(?:\s*(?P<brace>\{)|(?P<space>\s+))?")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_TOKEN = re.compile(r"(?:[^\s$\\]|\\[^\s)\]])+")
_THOUSANDS = r"[0-9]{1,3}(?:(?:,|\{,\}|,\\!)[0-9]{3})+(?![0-9])"
_NUMBER_IN_TEXT = re.compile(
    rf"(?:(?<![0-9A-Za-z)\]}}])[-+\u2212])?(?:\\[dt]?frac\{{[0-9]+\}}\{{[0-9]+\}}"
    rf"|(?:{_THOUSANDS}|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?|\.[0-9]+)"
)


def read_answer(text: str, rule: str) -> str | None:
    r"""The final answer in `text` as it is written there, stripped; None where there is none or it is empty.

    boxed: the content of the last balanced `\boxed{...}` or `\fbox{...}` (of nested boxes the inner one; `\{` and
    `\}` are no braces), or for `\boxed x` the text up to the next space or `$`, less trailing `.,;:`. A box that is
    never closed is passed over.
    >>> read_answer(r"so \boxed{\frac{1}{2}}.", "boxed"), read_answer(r"\boxed 7$, or \boxed{8", "boxed")
    ('\\frac{1}{2}', '7')

    tag: the last complete `<answer>...</answer>`.
    >>> read_answer("<answer>1</answer> <answer> 2 </answer> <answer>3", "tag")
    '2'

    last_number: the last decimal number, with thousands separators (`,` `{,}` `,\!`), a following `/digits`, or
    `\frac{digits}{digits}`. A sign belongs to it when it touches it and no digit, letter or closing bracket comes
    right before the sign.
    >>> [read_answer(t, "last_number") for t in ("3-2", "3 -2", "it is 1,234.5.", "x=-1/2", r"\frac{3}{4}", "none")]
    ['2', '-2', '1,234.5', '-1/2', '\\frac{3}{4}', None]

    whole: all of the text.
    """
    finders = {"boxed": _last_box, "tag": _last_tag, "last_number": _last_number, "whole": str}
    if rule not in finders:
        raise ValueError(f"answer rule: expected one of {', '.join(RULES)}, got {rule!r}")
    return (finders[rule](text) or "").strip() or None


def _last_box(text: str) -> str | None:
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    closing, opened = {}, []
    for brace in _BRACES.finditer(text, boxes[0].start()):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            closing[opened.pop()] = brace.start()
    for box in reversed(boxes):
        start = box.end()
        if start - 1 in closing:
            return text[start : closing[start - 1]]
        token = box["space"] and _BARE_TOKEN.match(text, start)
        if token:
            return token[0].rstrip(".,;:")
    return None


def _last_tag(text: str) -> str | None:
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if start < 0:
        return None
    start += len("<answer>")
    return text[start : text.index("</answer>", start)]


def _last_number(text: str) -> str | None:
    last = None
    for match in _NUMBER_IN_TEXT.finditer(text):
        last = match
    return last and last[0]


MAX_CHARS = 1000  # longer answers keep their text: no real answer is that long, and a collapsing policy's are
MAX_DIGITS = 18  # numerators and denominators fit int64, so that a device can reduce them too; others keep their text
_OWN_TEXT = "\\verb "  # opens the form of an answer that keeps its own text

_TOKEN = re.compile(
    r"""(?P<grouping>(?<=[0-9])(?:\{,\}|,\s*\\!\s*|\\,\s*)(?=[0-9]{3}(?![0-9])))  # 2{,}220  10,\!080  10\,000
    |(?P<dropped>\s+|[~$%°]|\\[\s,;:!>/$%()\[\]]|\\(?:q?quad|displaystyle|limits|degree)(?![A-Za-z])
        |\^\s*(?:\\(?:circ|degree)(?![A-Za-z])|\{\s*\\circ\s*\})
        |\\(?:left|right)(?![A-Za-z])\s*\.?|\\[bB]igg?[lr]?(?![A-Za-z]))
    |(?P<command>\\[A-Za-z]+)
    |(?P<word>[A-Za-z]+)
    |(?P<digits>[0-9]+)
    |\\.|.""",
    re.VERBOSE | re.DOTALL,
)
_SAME = {"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\leq": "\\le", "\\geq": "\\ge"}
_SAME |= {"\\neq": "\\ne", "\\lbrace": "\\{", "\\rbrace": "\\}", "\u2212": "-", "×": "\\times", "π": "\\pi"}
_COMMAND = re.compile(r"\\[A-Za-z]+")
_NUMERAL = tuple("0123456789.")
_WRAPPERS = {"\\text", "\\textbf", "\\textit", "\\textrm", "\\mathrm", "\\mathbf", "\\mathit", "\\mbox", "\\hbox"}
_WRAPPERS |= {"\\boxed", "\\fbox"}
_ARGUMENTS = {"\\frac": 2, "\\sqrt": 1, "^": 1, "_": 1}

_BRACKET = re.compile(r"[()\[\]]|\\[{}]|\\[lr]angle")
_BARE_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[^ ])")
_WORD = re.compile(r"\\[A-Za-z]+|[A-Za-z]{2,}")
_DEFINITION = re.compile(r"[A-Za-z](?:=|\\in(?![A-Za-z]) ?)")
_UNIT = re.compile(
    r"(?:(?<=[0-9}])|(?<=[A-Za-z] ))(?:square|sq|cubic)?(?:degrees?|units?|cents?|dollars?|percent|hours?|minutes?"
    r"|seconds?|days?|weeks?|months?|years?|mm|cm|km|kg|ml|mph|ft|(?:milli|centi|kilo)?met(?:er|re)s?|inch(?:es)?"
    r"|feet|foot|yards?|miles?|grams?|pounds?|lit(?:er|re)s?|gallons?)(?:\^\{[23]\})?\Z"
)
_SEPARATOR = re.compile(
    r"(\\\\|\\[{}]|\\(?:begin|end)\{[a-z]*\}|\\(?:cup|cap|in|le|ge|ne|lt|gt|pm|to)(?![A-Za-z])|[,;()\[\]&=<>])"
)
_DECIMAL = r"[+-]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<a>{_DECIMAL})(?:/(?P<b>{_DECIMAL})|(?:[eE]|(?:\\times|\\cdot|\*)10\^\{{?)(?P<exponent>[+-]?[0-9]+)\}}?)?"
    rf"|(?P<sign>[+-]?)(?P<whole>[0-9]*)\\frac\{{(?P<n>{_DECIMAL})\}}\{{(?P<d>{_DECIMAL})\}}"
    r"|(?P<sign2>[+-]?)(?P<whole2>[0-9]+)\ (?P<n2>[0-9]+)/(?P<d2>[0-9]+)"
)


def canonical_answer(text: str) -> str | None:
    r"""One spelling for the many of an answer; None for an empty one. A canonical form is its own canonical form.

    Numbers, alone or between the commas and brackets of a tuple, interval, set or matrix, become a reduced rational:
    >>> [canonical_answer(t) for t in (r"\frac12", r"\dfrac{2}{4}", "0.50", ".5", "3/6", "5e-1", r"$\tfrac 12$.")]
    ['1/2', '1/2', '1/2', '1/2', '1/2', '1/2', '1/2']
    >>> [canonical_answer(t) for t in ("142.0", "025", "-0", "+7", r"1\frac{4}{5}", "3 1/2", r"3.2\times 10^4")]
    ['142', '25', '0', '7', '9/5', '7/2', '32000']
    >>> canonical_answer(r"\left( \dfrac{3}{2}, -13.0 \right]")
    '(3/2,-13]'
    >>> canonical_answer(r"\begin{pmatrix} 0.5 \\ 2 \end{pmatrix}")
    '\\begin{pmatrix}1/2\\\\2\\end{pmatrix}'

    A comma separates thousands only where it cannot be a list's: three digits after it, no space, no bracket anywhere;
    `{,}`, `,\!` and `\,` before three digits always do. A list without brackets keeps a space after its commas.
    >>> [canonical_answer(t) for t in ("2,220", "2{,}220", r"11,\! 111,\! 100", "(2,220)", "2, 220", "3,5,7")]
    ['2220', '2220', '11111100', '(2,220)', '2, 220', '3, 5, 7']

    Typography, wrappers, currency, percent, degrees and units after a number go; words are lower-cased, letters not:
    >>> [canonical_answer(t) for t in (r"\text{ East }", r"\$18.90", r"50\%", r"30^{\circ}", r"15\mbox{ cm}^2")]
    ['east', '189/10', '50', '30', '15']
    >>> [canonical_answer(t) for t in ("(C)", "3R^2", r"11\sqrt2", r"2 \pi r", "4210_5", "$ $")]
    ['C', '3R^{2}', '11\\sqrt{2}', '2\\pi r', '4210_{5}', None]

    A leading `x =` or `x \in` goes where it is the only one:
    >>> [canonical_answer(t) for t in ("x = 5", r"x \in [-2,7]", "y = 2x+3", "x=1, y=2")]
    ['5', '[-2,7]', '2x+3', 'x=1, y=2']

    What is beyond a rational of MAX_DIGITS digits keeps its normalised text; what is longer than MAX_CHARS, or does not
    come to rest in one pass (only nonsense such as `^^\circ\circ`), keeps its own text after `\verb `.
    >>> canonical_answer("1e999999999"), canonical_answer(r"\frac{1}{0}"), canonical_answer(r"^^\circ\circ 5")
    ('1e999999999', '\\frac{1}{0}', '\\verb ^^\\circ\\circ 5')
    """
    if text.startswith(_OWN_TEXT):
        return text
    text = text.strip()
    if len(text) <= MAX_CHARS:
        form = _one_pass(text)
        if _one_pass(form) == form:
            return form or None
    return _OWN_TEXT + " ".join(text.split())


def _one_pass(text: str) -> str:
    """Normalise the typesetting, then each delimited number."""
    text = _without_typography(text)
    bracketed = _BRACKET.search(text)
    if not bracketed:
        text = _BARE_THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = text.replace(", ", ",")
    text = _WORD.sub(lambda match: match[0] if match[0][0] == "\\" else match[0].lower(), text)
    text = _without_trimmings(text)
    parts = _SEPARATOR.split(text)
    for i in range(0, len(parts), 2):
        if i == 0 or parts[i - 1] not in (")", "]", "\\}") and not parts[i - 1].startswith("\\end"):
            parts[i] = _reduced(parts[i])
    return "".join(parts) if bracketed else "".join(parts).replace(",", ", ").rstrip(" ")


def _without_trimmings(text: str) -> str:
    """Drop the full stop, units after the number, `x=` and the brackets of a multiple-choice letter."""
    rest = None
    while rest != text:
        rest, text = text, _UNIT.sub("", text).rstrip(". ")
    definition = _DEFINITION.match(text)
    if definition and text.count("=") + len(re.findall(r"\\in(?![A-Za-z])", text)) == 1:
        text = text[definition.end() :] or text
    choice = re.fullmatch(r"\(([A-Za-z])\)", text)
    return choice[1] if choice else text


def _without_typography(text: str) -> str:
    r"""Drop spacing, `$`, wrappers and needless braces; brace the one-token arguments of \frac, \sqrt, ^ and _.

    A space stays where dropping it would join two numbers or a command and a letter; one beside a comma goes after it.
    """
    tokens, closing = _tokens(text)
    out, last, blank, resume = [], "", set(), {}
    pending, gap = 0, False  # arguments that the last command still lacks; whether something was dropped since then
    for i, (token, dropped_before) in enumerate(tokens):
        gap |= dropped_before
        if token in _WRAPPERS and i + 1 in closing:
            blank |= set() if pending else {i + 1, closing[i + 1]}
            continue
        if i in closing and i not in blank:
            if not (pending or _COMMAND.fullmatch(last) or last[-1:] in ("}", "]")):
                blank |= {i, closing[i]}
            resume[closing[i]] = max(pending - 1, 0)
        if i in blank:
            continue
        symbol = pending and i + 1 not in closing and token not in _ARGUMENTS and _COMMAND.fullmatch(token)
        while pending and token and (symbol or token.isascii() and token.isalnum()):
            cut = len(token) if symbol or last in ("^", "_") and token.isdigit() else 1
            last = "{" + token[:cut] + "}"
            out.append(last)
            token, pending, gap = token[cut:], pending - 1, False
        if token:
            out.append(_space(last, token, gap) + token)
            last, gap = token, gap and token == ","
            pending = resume.get(i, _ARGUMENTS.get(token, 0))
    return "".join(out)


def _tokens(text: str) -> tuple[list[tuple[str, bool]], dict[int, int]]:
    """Tokens with whether something was dropped before each; and for each matched opening brace, where it closes."""
    tokens, closing, opened, gap = [], {}, [], False
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "dropped":
            gap = True
        elif match.lastgroup != "grouping":
            if match[0] == "{":
                opened.append(len(tokens))
            elif match[0] == "}" and opened:
                closing[opened.pop()] = len(tokens)
            tokens.append((_SAME.get(match[0], match[0]), gap))
            gap = False
    return tokens, closing


def _space(last: str, token: str, gap: bool) -> str:
    """The space that stays between two tokens; `gap`: whether anything was dropped there."""
    if _COMMAND.fullmatch(last):
        return " " if token[0].isascii() and token[0].isalpha() else ""
    return " " if gap and (last == "," or last[-1:] in _NUMERAL and token[0] in _NUMERAL) else ""


def _reduced(part: str) -> str:
    """A number as a reduced rational, or as a tidy decimal where it is too long for that; anything else as it is."""
    match = _NUMBER.fullmatch(part)
    if not match:
        return part
    value = _value(match)
    if value is not None and max(len(str(abs(value.numerator))), len(str(value.denominator))) <= MAX_DIGITS:
        return str(value)
    if match["a"] != part:
        return part
    whole, _, decimals = part.lstrip("+-").partition(".")
    return f"{'-' * (part[0] == '-')}{whole.lstrip('0') or '0'}.{decimals.rstrip('0')}".rstrip(".")


def _value(match: re.Match) -> Fraction | None:
    """The rational that a match of _NUMBER spells; None if it is none, or is spelled with too many digits."""
    exponent = match["exponent"] or "0"
    sign, whole = match["sign"] or match["sign2"], match["whole"] or match["whole2"]
    n, d = match["n"] or match["n2"] or match["a"], match["d"] or match["d2"] or match["b"] or "1"
    top, bottom = _exact(n), _exact(d)
    if top is None or not bottom or len(exponent) > 4 or abs(int(exponent)) > 2 * MAX_DIGITS:
        return None
    value = top / bottom * Fraction(10) ** int(exponent)
    if whole:
        if not (n.isdigit() and d.isdigit() and value < 1 and len(whole) <= MAX_DIGITS):
            return None
        value += int(whole)
    return -value if sign == "-" else value


def _exact(decimal: str) -> Fraction | None:
    whole, _, decimals = decimal.lstrip("+-0").partition(".")
    return Fraction(decimal) if len(whole) + len(decimals.rstrip("0")) <= MAX_DIGITS else None


def answer_key(text: str | None) -> int:
    """Signed 64-bit hash of the canonical form, the same in every process and version of Python; 0 means no answer.

    >>> answer_key(r"\\frac12") == answer_key("0.5") != answer_key("2"), answer_key(None), answer_key(" ")
    (True, 0, 0)
    """
    form = None if text is None else canonical_answer(text)
    if form is None:
        return 0
    digest = blake2b(form.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


class AnswerReader:
    """Reads the final answers of a packed batch of completions. `tokenizer`: any Hugging Face tokenizer."""

    def __init__(self, tokenizer, rule: str):
        if rule not in RULES:
            raise ValueError(f"answer rule: expected one of {', '.join(RULES)}, got {rule!r}")
        self.tokenizer = tokenizer
        self.rule = rule

    def read(self, tokens: Tensor, cu_seqlens: Tensor) -> list[str | None]:
        """The answers as texts. tokens [N] int64, cu_seqlens [R+1]; R answers, None where there is none."""
        bounds = cu_seqlens.tolist()
        if bounds[:1] != [0] or bounds[-1] != len(tokens) or bounds != sorted(bounds):
            raise ValueError(f"cu_seqlens: expected to rise from 0 to {len(tokens)} (number of tokens), got {bounds}")
        ids = tokens.tolist()
        completions = (ids[start:end] for start, end in zip(bounds, bounds[1:], strict=False))
        decode = partial(self.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [read_answer(decode(completion), self.rule) for completion in completions]

    def keys(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The answers' keys [R] int64 on the device of `tokens`; 0 where there is no answer."""
        keys = [answer_key(answer) for answer in self.read(tokens, cu_seqlens)]
        return torch.tensor(keys, dtype=torch.int64, device=tokens.device)
