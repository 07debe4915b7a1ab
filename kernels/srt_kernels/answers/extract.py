r"""Finds the final answer of a completion. It works on bytes of UTF-8.

The time is linear in the length of the text, also for degenerate text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import overload

from srt_kernels.answers.stage import DROP, MAX_BYTES, NUMBER, Action, Stage
from srt_kernels.answers.utf8 import SPACES, to_bytes, to_text

Finder = Callable[[bytes, bool], bytes | None]
"""finder(data, is_complete) -> the answer, or None.

If the data is not complete, it is the end of a text. None then also means that the answer may begin
before it.
"""


@overload
def read_answer(text: str, rule: str) -> str | None: ...
@overload
def read_answer(text: bytes, rule: str) -> bytes | None: ...
def read_answer(text: str | bytes, rule: str) -> str | bytes | None:
    r"""The final answer in `text`, as it is written there, stripped. None where there is none or it
    is empty.

    The answer of bytes is bytes. They need not be UTF-8. rule: one of ANSWER_RULES; ValueError for
    another one.

    boxed: the content of the last balanced `\boxed{...}` or `\fbox{...}`. Of nested boxes it is the
    inner one. `\{` and `\}` are no braces. A box that is never closed is skipped. Without a
    balanced box, the answer is the text after the last `\boxed x`, up to the next space or `$`,
    without trailing `.,;:`.
    >>> read_answer(r"so \boxed{\frac{1}{2}}.", "boxed")
    '\\frac{1}{2}'
    >>> read_answer(r"\boxed 7$, or \boxed{8", "boxed")
    '7'

    tag: the content of the last complete `<answer>...</answer>`.
    >>> read_answer("<answer>1</answer> <answer> 2 </answer> <answer>3", "tag")
    '2'

    last_number: the last decimal number. It may have thousands separators (`,` `{,}` `,\!`) and a
    following `/digits`, or be a `\frac{digits}{digits}` (with a sign in the numerator; `\frac12`
    too). A sign belongs to the number if it touches it and no digit, letter or closing bracket
    stands right before the sign. A run of numbers that is longer than MAX_BYTES is taken as a
    whole.
    >>> texts = ("3-2", "3 -2", "it is 1,234.5.", "x=-1/2", r"\frac{3}{4}", "none")
    >>> [read_answer(text, "last_number") for text in texts]
    ['2', '-2', '1,234.5', '-1/2', '\\frac{3}{4}', None]

    whole: all of the text.
    """
    answer = (finder_of(rule)(to_bytes(text), True) or b"").strip(SPACES)
    return (answer if isinstance(text, bytes) else to_text(answer)) or None


def finder_of(rule: str) -> Finder:
    """The finder of a rule. Raises ValueError for an unknown rule."""
    if rule not in _FINDERS:
        raise ValueError(f"answer rule: expected one of {', '.join(ANSWER_RULES)}, got {rule!r}")
    return _FINDERS[rule]


_BOX = re.compile(
    rb"\\(?:boxed|fbox)(?![A-Za-z])(?:[\x00-\x20]*(?P<brace>\{)|(?P<space>[\x00-\x20]+))?"
)
_BRACES = re.compile(rb"\\.|[{}]", re.DOTALL)
_BARE_ANSWER = re.compile(rb"(?:[^\x00-\x20$\\]|\\[^\x00-\x20)\]])+")
_PUNCTUATION = b".,;:"  # no part of a bare answer's end


def _find_box(data: bytes, is_complete: bool) -> bytes | None:
    boxes = list(_BOX.finditer(data))
    if not boxes:
        return None
    end_of = _matching_braces(data, boxes[0].start())
    bare = None
    for box in reversed(boxes):
        start = box.end()
        if start - 1 in end_of:
            return data[start : end_of[start - 1]]
        if bare is None and box["space"]:
            bare = _BARE_ANSWER.match(data, start)
    return bare[0].rstrip(_PUNCTUATION) if bare and is_complete else None


def _matching_braces(data: bytes, start: int) -> dict[int, int]:
    """Position of an opening brace -> position of its closing brace, from `start` on."""
    end_of = {}
    open_braces = []
    for brace in _BRACES.finditer(data, start):
        if brace[0] == b"{":
            open_braces.append(brace.start())
        elif brace[0] == b"}" and open_braces:
            end_of[open_braces.pop()] = brace.start()
    return end_of


def _find_tag(data: bytes, is_complete: bool) -> bytes | None:
    start = data.rfind(b"<answer>", 0, max(data.rfind(b"</answer>"), 0))
    if start < 0:
        return None
    start += len(b"<answer>")
    return data[start : data.index(b"</answer>", start)]


_DIGITS = b"0123456789"
_NO_DIGITS = bytes(set(range(256)) - set(_DIGITS))
_NUMBER_BYTES = _DIGITS + b".,/{}\\!+-dfrtac" + "−–".encode()
"""The bytes that a number in a text can have. kernel/search.py has the same list."""

_GROUPS = "[1-9][0-9]?[0-9]?((,|{,}|,\\\\!)[0-9][0-9][0-9])+"  # thousands
_UNSIGNED = (
    rf"(({_GROUPS}|[0-9]+)(\.[0-9]+)?(/[0-9]+)?|\.[0-9]+"
    r"|\\[dt]?frac({[+-]?[0-9]+}{[0-9]+}|[0-9][0-9]))"
)


def _find_last_number(data: bytes, is_complete: bool) -> bytes | None:
    end = len(data.rstrip(_NO_DIGITS))
    start = len(data[:end].rstrip(_NUMBER_BYTES))
    if start == end or start == 0 and not is_complete:
        return None
    if end - start > MAX_BYTES:
        return data[start:end]
    # The byte before the run decides about a sign. The byte after it may close a \frac{1}{2}.
    window = data[max(start - 1, 0) : end + 1]
    matches = numbers_in_text().walk(window, (False,))
    return [match for action, match in matches if action.body == NUMBER][-1]


@cache
def numbers_in_text() -> Stage:
    """A stage that finds numbers: the action of a number has the body NUMBER, others drop the
    match.

    Its state: whether a sign that follows cannot belong to a number.
    """
    patterns = [
        ("number", _UNSIGNED, 0),
        ("signed", f"([-+]|−|–){_UNSIGNED}", 0),
        ("not grouped", f"{_GROUPS}[0-9]", 0),
        ("value", r"[0-9A-Za-z)\]}]", 0),
        ("other", ".", 0),
        ("end", "$", 0),
    ]

    def action(after_value: bool, kind: str) -> Action:
        if kind == "number" or kind == "signed" and not after_value:
            return Action((True,), NUMBER)
        return Action((kind in ("value", "not grouped"),), DROP, take=1)

    return Stage(patterns, [(False,), (True,)], action, first_state=lambda previous: (False,))


def _take_whole(data: bytes, is_complete: bool) -> bytes:
    return data


_FINDERS: dict[str, Finder] = {
    "boxed": _find_box,
    "tag": _find_tag,
    "last_number": _find_last_number,
    "whole": _take_whole,
}

ANSWER_RULES = tuple(_FINDERS)
"""The rules. A rule says where the final answer of a completion is; see read_answer."""
