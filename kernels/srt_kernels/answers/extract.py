r"""Finds the final answer of a completion. It works on bytes of UTF-8.

The time is linear in the length of the text, also for degenerate text.
"""

from __future__ import annotations

from typing import overload

from srt_kernels.answers.finding.finder import Candidate
from srt_kernels.answers.finding.hints import find_marks, first_places
from srt_kernels.answers.finding.rules import RANKS, finder
from srt_kernels.answers.utf8 import SPACES, to_bytes, to_text

ANSWER_RULES = ("answer", "boxed", "tag", "last_number", "whole")
"""The rules. A rule says where the final answer of a completion is; see read_answer."""

SEPARATOR = b", "
"""Between the boxes of a list."""

SHORT = 256
"""Bytes of a text that is read at once. To look for marks in it takes longer."""


@overload
def read_answer(text: str, rule: str) -> str | None: ...
@overload
def read_answer(text: bytes, rule: str) -> bytes | None: ...
def read_answer(text: str | bytes, rule: str) -> str | bytes | None:
    r"""The final answer in `text`, as it is written there, stripped. None where there is none or it
    is empty.

    The answer of bytes is bytes. They need not be UTF-8. rule: one of ANSWER_RULES; ValueError for
    another one.

    answer: the first of these that the text has, and of several the last one: what `boxed` finds,
    what `tag` finds, `#### 5`, "the answer is 5" or "Answer: 5", a line with one letter from A to
    J, what `last_number` finds.
    >>> texts = (r"So \boxed{5}.", "<answer>5</answer>", "#### 5", "The answer is 5.", "3 + 2 = 5")
    >>> [read_answer(text, "answer") for text in texts]
    ['5', '5', '5', '5', '5']

    boxed: the content of the last balanced `\boxed{...}` or `\fbox{...}`. Of nested boxes it is the
    inner one. `\{` and `\}` are no braces. Boxes with a comma, `and` or `or` between them are one
    list. A box that is empty, holds a placeholder as `...`, or is never closed is skipped. Without
    a box, the answer is the text after the last `\boxed x`, up to the next space or `$`, without
    trailing `.,;:`.
    >>> texts = (r"so \boxed{\frac{1}{2}}.", r"\boxed{1} and \boxed{-2}", r"\boxed{3}. \boxed{4}")
    >>> [read_answer(text, "boxed") for text in texts]
    ['\\frac{1}{2}', '1, -2', '4']
    >>> read_answer(r"\boxed 7$, or \boxed{8", "boxed")
    '7'

    tag: the content of the last complete `<answer>...</answer>` that is no placeholder.
    >>> read_answer("<answer>1</answer> <answer> 2 </answer> <answer>3", "tag")
    '2'

    last_number: the last number, as long as it is written: with a sign, thousands, a fraction, a
    power. A sign belongs to the number if it touches it and no digit, letter or closing bracket
    stands right before the sign. An exponent or index of something else is no number.
    >>> texts = ("3-2", "3 -2", "1,234.5.", r"2\frac{1}{2}", r"3.5 \times 10^5", "42 cm^2", "none")
    >>> [read_answer(text, "last_number") for text in texts]
    ['2', '-2', '1,234.5', '2\\frac{1}{2}', '3.5 \\times 10^5', '42', None]

    These rules read what comes after the last `</think>`. After a `<think>` that is not closed
    there is no answer. The text ends where the completion goes on to another question after an
    answer: at "Question:", or at a line that begins with a word as "Problem:".
    >>> texts = (r"<think>\boxed{1}</think> \boxed{2}", r"<think>\boxed{1}", "#### 1\nQuestion: 2")
    >>> [read_answer(text, "answer") for text in texts]
    ['2', None, '1']

    whole: all of the text.
    """
    check_rule(rule)
    data = to_bytes(text)
    answer = (find_answer if len(data) <= SHORT else _find_from_end)(data, rule) or b""
    return (answer if isinstance(text, bytes) else to_text(answer)) or None


def _find_from_end(data: bytes, rule: str) -> bytes | None:
    """find_answer. It reads the end of a text first, and then more of it."""
    marks = find_marks(data, rule)
    for first, is_complete in first_places(0, len(data), marks, rule):
        part = data[first:]
        may_think = marks.think >= 0
        answer = find_answer(part, rule, is_complete=is_complete, may_think=may_think)
        if answer is not None:
            return answer
    return None


def check_rule(rule: str) -> None:
    """Raises ValueError for an unknown rule."""
    if rule not in ANSWER_RULES:
        raise ValueError(f"answer rule: expected one of {', '.join(ANSWER_RULES)}, got {rule!r}")


def find_answer(
    data: bytes, rule: str, *, is_complete: bool = True, may_think: bool = False
) -> bytes | None:
    """The answer, stripped; b"" where there is none.

    If the data are not complete, they are the end of a text. None then means that what comes before
    them may change the answer. may_think: the data may have a `<think>` or `</think>`. Where they
    have none, what comes before them counts.
    """
    if rule == "whole":
        return data.strip(SPACES)
    found = finder(rule).run(data, is_complete=is_complete)
    if not (
        is_complete or found.cleared or not may_think and _is_sure(data, found.candidate, rule)
    ):
        return None
    pieces = [data[start:end] for start, end in found.candidate.pieces]
    if len(pieces) > 1 and len(set(pieces)) == 1:  # no list, but one answer written several times
        pieces = pieces[:1]
    return SEPARATOR.join(pieces).strip(SPACES)


def _is_sure(data: bytes, candidate: Candidate, rule: str) -> bool:
    """Whether text before the data, without a CLEAR or STOP, changes nothing."""
    is_first = candidate.rank == max(RANKS[rule].values())
    return is_first and (rule == "tag" or finder(rule).is_broken(data, candidate))
