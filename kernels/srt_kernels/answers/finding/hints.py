r"""What a token id says about the place of an answer, before any byte is read.

A mark is the last byte of one of a few words: of `</think>`, which decides where a text begins; of
`Question`, where it may end; of `\boxed` or `</answer>`, where the answer is. So a reader finds the
last marks of a rollout in its token ids, and reads the text from there on. An int32 for each token
holds four bits for each kind of mark:

    HAS     the token has the mark
    MAY     it may end the word: it has the mark if the token before it has STARTS, or has INNER and
            follows a token with STARTS or INNER
    STARTS  it may begin the word
    INNER   it may be inside of the word

This finds all marks, and a few places that are none. Then more bytes are read than are needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

HAS, MAY, STARTS, INNER = 1, 2, 4, 8
BITS = 4
"""The bits of a kind of mark."""

THINK, RUN_ON, TOP = range(3)
"""The kinds of marks. TOP: what the rule looks for first."""

NEEDS_MARK = ("boxed", "tag")
"""The rules that find nothing in a rollout without a mark of the kind TOP."""

NEARBY = 16
"""Tokens before a mark, or before the end of a text, that are read first.

Also bytes, where there are no tokens. No word is longer.
"""

WIDENING = 16
"""How much farther each next reading goes."""

_THINK_WORDS = (b"think>", b"thinking>")
_RUN_ON_WORDS = (b"Q:", b"Question", b"Problem", b"Exercise", b"Instruction", b"Input")
_RUN_ON_WORDS += (b"Human", b"User", b"Student")
_BOX_WORDS = (rb"\boxed", rb"\fbox")
_TOP_WORDS = {"answer": _BOX_WORDS, "boxed": _BOX_WORDS, "tag": (b"</answer>",)}


class _Parts(NamedTuple):
    """How a token can have a part of one of a few words. No letter may follow them."""

    word: re.Pattern[bytes]
    ends: re.Pattern[bytes]  # at the start of a token
    starts: tuple[bytes, ...]  # at the end of a token
    inner: frozenset[bytes]


class Marks(NamedTuple):
    """The places of a text's marks. A place before the start of the text: it has none."""

    think: int  # the last one
    run_on: int  # the last one
    top: int  # the last one
    first_top: int


def find_marks(data: bytes, rule: str) -> Marks:
    """The marks of a text."""
    words = _words(rule)
    think, run_on, top = (max(map(data.rfind, words[kind]), default=-1) for kind in sorted(words))
    first_tops = [place for place in map(data.find, words[TOP]) if place >= 0]
    return Marks(think, run_on, top, min(first_tops, default=-1))


def _words(rule: str) -> dict[int, tuple[bytes, ...]]:
    """The words of each kind of mark."""
    if rule == "whole":
        return dict.fromkeys((THINK, RUN_ON, TOP), ())
    return {THINK: _THINK_WORDS, RUN_ON: _RUN_ON_WORDS, TOP: _TOP_WORDS.get(rule, ())}


def first_places(start: int, stop: int, marks: Marks, rule: str) -> Iterator[tuple[int, bool]]:
    """Where a text is read from: first near its end, then farther away, last from its start.

    With each place: whether what comes before it is known not to matter. kernel/find.py does the
    same, but the last place is always the start there.
    """
    if rule in NEEDS_MARK and marks.top < start:
        return
    if rule == "boxed" and marks.think < start:  # no answer before the first mark
        start = max(start, marks.first_top - NEARBY)
    anchor = stop if rule == "last_number" else marks.top
    if marks.think >= start:
        anchor = marks.think
    elif marks.run_on >= start or rule == "whole":
        anchor = start
    width = NEARBY
    first = anchor - width
    while first > start:
        yield first, False
        width *= WIDENING
        first = start if marks.think >= start else anchor - width
    yield start, True


def token_hints(tokens: Iterable[bytes], rule: str) -> list[int]:
    """The hint of each token, for one of ANSWER_RULES."""
    parts_of = {kind: _parts(words) for kind, words in _words(rule).items() if words}
    return [
        sum(_flags(token, parts) << BITS * kind for kind, parts in parts_of.items())
        for token in tokens
    ]


def _parts(words: tuple[bytes, ...]) -> _Parts:
    ends = {word[i:] for word in words for i in range(1, len(word))}
    inner = {word[i:j] for word in words for i in range(1, len(word)) for j in range(i, len(word))}
    return _Parts(
        word=_any_of(words),
        ends=_any_of(ends),
        starts=tuple({word[:i] for word in words for i in range(1, len(word))}),
        inner=frozenset(inner),  # an empty token, too
    )


def _any_of(words: Iterable[bytes]) -> re.Pattern[bytes]:
    return re.compile(b"(?:%s)(?![A-Za-z])" % b"|".join(map(re.escape, sorted(words))))


def _flags(token: bytes, parts: _Parts) -> int:
    return (
        (HAS if parts.word.search(token) else 0)
        | (MAY if parts.ends.match(token) else 0)
        | (STARTS if token.endswith(parts.starts) else 0)
        | (INNER if token in parts.inner else 0)
    )
