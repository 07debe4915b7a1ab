r"""From a completion to the key of its final answer: find the answer, bring it to a canonical form, hash the form.

Equal keys are one vote. `read_answer` finds, `canonical_answer` unifies spellings (answer_form.py), `answer_key` hashes,
and `AnswerReader` does the three for a packed batch of token ids on the device that holds it (answer_kernel.py). All of
them are defined over bytes of UTF-8, so that no tokenization of a text changes its key. Finding is
linear in the length of the text, also of degenerate text; the form looks at MAX_BYTES at most.

Left out on purpose: algebra (`x+1` and `1+x` are two answers), nested fractions, order in sets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import AnyStr

from srt_kernels.answers.canonical import (
    DROP,
    MAX_BYTES,
    NUMBER,
    SPACES,
    Act,
    Stage,
    canonical_bytes,
    hash_bytes,
)
from srt_kernels.core.checks import expect


def read_answer(text: AnyStr, rule: str) -> AnyStr | None:
    r"""The final answer in `text` as it is written there, stripped; None where there is none or it is empty.

    Of bytes, which need not be UTF-8, it is bytes.

    boxed: the content of the last balanced `\boxed{...}` or `\fbox{...}` (of nested boxes the inner one; `\{` and
    `\}` are no braces). Where there is none, of the last `\boxed x` the text up to the next space or `$`, less
    trailing `.,;:`. A box that is never closed is passed over.
    >>> read_answer(r"so \boxed{\frac{1}{2}}.", "boxed"), read_answer(r"\boxed 7$, or \boxed{8", "boxed")
    ('\\frac{1}{2}', '7')

    tag: the last complete `<answer>...</answer>`.
    >>> read_answer("<answer>1</answer> <answer> 2 </answer> <answer>3", "tag")
    '2'

    last_number: the last decimal number, with thousands separators (`,` `{,}` `,\!`), a following `/digits`, or
    `\frac{digits}{digits}` (with a sign in the numerator; `\frac12` too). A sign belongs to it when it touches it and
    no digit, letter or closing bracket comes right before the sign. Of more than MAX_BYTES characters of numbers in a
    row all are taken.
    >>> [read_answer(t, "last_number") for t in ("3-2", "3 -2", "it is 1,234.5.", "x=-1/2", r"\frac{3}{4}", "none")]
    ['2', '-2', '1,234.5', '-1/2', '\\frac{3}{4}', None]

    whole: all of the text.
    """
    found = (_finder(rule)(_encoded(text), True) or b"").strip(SPACES)
    return (found if isinstance(text, bytes) else _decoded(found)) or None


def canonical_answer(text: str) -> str | None:
    r"""One spelling for the many of an answer; None for an empty one.

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

    A leading `x =` or `x \in` goes where there is no other `=`:
    >>> [canonical_answer(t) for t in ("x = 5", r"x \in [-2,7]", "y = 2x+3", "x=1, y=2")]
    ['5', '[-2,7]', '2x+3', 'x=1, y=2']

    What is beyond a rational with numerator and denominator below 10^18 keeps its normalised text. What is longer than
    MAX_BYTES or has braces that do not match keeps its own text, after `\verb `.
    >>> canonical_answer("1e999999999"), canonical_answer(r"\frac{1}{0}"), canonical_answer(r"\sqrt{ 5")
    ('1e999999999', '\\frac{1}{0}', '\\verb \\sqrt{ 5')
    """
    form = canonical_bytes(_encoded(text))
    return None if form is None else _decoded(form)


def answer_key(text: str | bytes | None) -> int:
    """Signed 64-bit hash of the canonical form, the same on every device, version and run; 0 means no answer.

    >>> answer_key(r"\\frac12") == answer_key("0.5") != answer_key("2"), answer_key(None), answer_key(" ")
    (True, 0, 0)
    """
    form = None if text is None else canonical_bytes(_encoded(text))
    return 0 if form is None else hash_bytes(form)


def _encoded(text: str | bytes) -> bytes:
    expect(isinstance(text, (str, bytes)), "text", "str or bytes", type(text).__name__)
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # of byte tokens; two answers stay two
        return data.decode("utf-8", "backslashreplace")


# ---- finding the answer in bytes ----
# finder(data, complete) -> the answer's bytes, or None. Unless complete, data is the end of a text, and None may also
# mean that there is too little of it.

_BOX = re.compile(
    rb"\\(?:boxed|fbox)(?![A-Za-z])(?:[\x00-\x20]*(?P<brace>\{)|(?P<space>[\x00-\x20]+))?"
)
_BRACES = re.compile(rb"\\.|[{}]", re.DOTALL)
_BARE_TOKEN = re.compile(rb"(?:[^\x00-\x20$\\]|\\[^\x00-\x20)\]])+")
BARE_END = b".,;:"  # no part of a bare token's end


def _last_box(data: bytes, complete: bool) -> bytes | None:
    boxes = list(_BOX.finditer(data))
    if not boxes:
        return None
    closing, opened = {}, []
    for brace in _BRACES.finditer(data, boxes[0].start()):
        if brace[0] == b"{":
            opened.append(brace.start())
        elif brace[0] == b"}" and opened:
            closing[opened.pop()] = brace.start()
    bare = None
    for box in reversed(boxes):
        start = box.end()
        if start - 1 in closing:
            return data[start : closing[start - 1]]
        if bare is None and box["space"]:
            bare = _BARE_TOKEN.match(data, start)
    return bare[0].rstrip(BARE_END) if bare and complete else None


def _last_tag(data: bytes, complete: bool) -> bytes | None:
    start = data.rfind(b"<answer>", 0, max(data.rfind(b"</answer>"), 0))
    if start < 0:
        return None
    start += len(b"<answer>")
    return data[start : data.index(b"</answer>", start)]


_DIGITS = b"0123456789"
_NO_DIGITS = bytes(set(range(256)) - set(_DIGITS))
_NUMBER_BYTES = _DIGITS + b".,/{}\\!+-dfrtac" + "−–".encode()  # that a number in a text can have
_GROUPS = "[1-9][0-9]?[0-9]?((,|{,}|,\\\\!)[0-9][0-9][0-9])+"
_UNSIGNED = rf"(({_GROUPS}|[0-9]+)(\.[0-9]+)?(/[0-9]+)?|\.[0-9]+|\\[dt]?frac({{[+-]?[0-9]+}}{{[0-9]+}}|[0-9][0-9]))"


@cache
def numbers_in_text() -> Stage:
    """Its act has the body NUMBER for a number. Its state: whether what came before can have no sign after it."""

    def act(after_value: bool, kind: str) -> Act:
        if kind == "number" or kind == "signed" and not after_value:
            return Act((True,), NUMBER)
        return Act((kind in ("value", "not grouped"),), DROP, take=1)

    kinds = [
        ("number", _UNSIGNED, 0),
        ("signed", f"([-+]|−|–){_UNSIGNED}", 0),
        ("not grouped", f"{_GROUPS}[0-9]", 0),
    ]
    return Stage(
        [*kinds, ("value", r"[0-9A-Za-z)\]}]", 0), ("other", ".", 0), ("end", "$", 0)],
        [(False,), (True,)],
        act,
    )


def _last_number(data: bytes, complete: bool) -> bytes | None:
    end = len(data.rstrip(_NO_DIGITS))
    start = len(data[:end].rstrip(_NUMBER_BYTES))
    if start == end or start == 0 and not complete:
        return None
    if end - start > MAX_BYTES:
        return data[start:end]
    # From the byte before, which decides about a sign, to the one after, which may close a \frac{1}{2}.
    window = data[max(start - 1, 0) : end + 1]
    return [match for act, match in numbers_in_text().walk(window, (False,)) if act.body == NUMBER][
        -1
    ]


_FINDERS = {
    "boxed": _last_box,
    "tag": _last_tag,
    "last_number": _last_number,
    "whole": lambda data, complete: data,
}
RULES = tuple(_FINDERS)


def _finder(rule: str) -> Callable[[bytes, bool], bytes | None]:
    if rule not in _FINDERS:
        raise ValueError(f"answer rule: expected one of {', '.join(RULES)}, got {rule!r}")
    return _FINDERS[rule]


# ---- a packed batch of completions ----
