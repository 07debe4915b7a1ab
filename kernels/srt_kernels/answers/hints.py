r"""What a token id says about the place of an answer, before any byte is read.

A mark is what a search begins at: the x of `\boxed` or `\fbox`, the last > of `</answer>`, a digit.
Only rollouts with a mark are read, and only from their last mark on towards the start. An int32 for
each token holds

    HAS_MARK            the token has a mark
    MAY_HAVE_MARK       it begins inside the command: it has a mark if the token before it has
                        MAY_PRECEDE_MARK
    MAY_PRECEDE_MARK    it may end inside the command
    >> READ_SHIFT       how many of its first bytes a search has to read. The other bytes change
                        nothing about braces and are no part of a command
"""

from __future__ import annotations

import re

from srt_kernels.answers.utf8 import SPACES

HAS_MARK = 1
MAY_HAVE_MARK = 2
MAY_PRECEDE_MARK = 4
READ_SHIFT = 3

_BOX_COMMANDS = ((b"\\bo", b"ed"), (b"\\fbo", b""))  # before and after the x
_ENDS_OF_BOX = re.compile(rb"(?:d|ed|xed|oxed|boxed|x|ox|box|fbox)(?![A-Za-z])")
_TAG_NAMES = (b"/answer", b"answer")


def token_hint(token: bytes, rule: str) -> int:
    """The hint of a token, for one of ANSWER_RULES."""
    if rule == "boxed":
        return _box_hint(token)
    if rule == "tag":
        flags = HAS_MARK if b">" in token else 0
        is_read = re.search(b"[<>]", token) or any(token in name for name in _TAG_NAMES)
    else:
        flags = HAS_MARK if rule == "whole" or re.search(b"[0-9]", token) else 0
        is_read = flags
    return flags | (len(token) if is_read else 0) << READ_SHIFT


def _box_hint(token: bytes) -> int:
    ends_inside = token[-1:] in b"\\bof"  # True for an empty token, too
    flags = MAY_PRECEDE_MARK if ends_inside else 0
    for match in re.finditer(b"x", token):
        before = token[: match.start()]
        after = token[match.end() :]
        for head, tail in _BOX_COMMANDS:
            if after.startswith(tail) or tail.startswith(after):
                if before.endswith(head):
                    flags |= HAS_MARK
                if head.endswith(before):
                    flags |= MAY_HAVE_MARK
    read = len(token)
    if not re.search(rb"[\\{}]", token) and not _ENDS_OF_BOX.match(token):
        leading_spaces = len(token) - len(token.lstrip(SPACES))
        read = min(read, leading_spaces + 1)
    return flags | read << READ_SHIFT
