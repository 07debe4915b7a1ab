r"""Triton: searches from the end of a text towards its start. Each finds where an answer is.

A place in a text is a token and a byte of it. A search reads the bytes that the hints of tokens
ask for (answers/hints.py), and skips the others.
"""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from typing import NamedTuple

import triton
import triton.language as tl

from srt_kernels.answers.kernel import constants as const
from srt_kernels.answers.kernel.lanes import any_lane, is_digit, is_letter


class Text(NamedTuple):
    """Pointers to the packed tokens and to reader.VocabularyTables; the last id of these."""

    tokens: tl.tensor
    blob: tl.tensor
    offsets: tl.tensor
    hints: tl.tensor
    last_id: tl.tensor


class Place(NamedTuple):
    """A place in a text."""

    token: tl.tensor  # int64
    byte: tl.tensor


class Cursor(NamedTuple):
    """The place that a search has reached. It has yet to read the bytes before `byte`."""

    token: tl.tensor  # int64
    byte: tl.tensor
    first: tl.tensor  # where the token's bytes begin in the blob


@triton.jit
def token_id(tokens, token, last_id, mask):
    """The id of a token. An id beyond the vocabulary is the last one."""
    value = tl.load(tokens + token, mask=mask, other=0)
    return tl.minimum(tl.maximum(value, 0), last_id)


@triton.jit
def token_bytes(text, token, mask):
    """Where the bytes of a token begin, how many there are, and how many of them a search reads."""
    index = token_id(text.tokens, token, text.last_id, mask)
    first = tl.load(text.offsets + index, mask=mask, other=0)
    size = tl.load(text.offsets + index + 1, mask=mask, other=0) - first
    read = tl.load(text.hints + index, mask=mask, other=0) >> const.READ_SHIFT
    return first, size, read


@triton.jit
def last_place(stop):
    """The cursor at the end of a text."""
    zero = tl.zeros_like(stop).to(tl.int32)
    return Cursor(stop, zero, zero)


@triton.jit
def step_back(text, cursor, start, running, WHOLE: tl.constexpr):
    """Moves each running lane by one byte towards the start of its text.

    Returns the cursor; which lanes run on; which lanes skipped bytes of a new token, as its hint
    allows unless WHOLE; which lanes read a byte (an empty token has none); the byte.
    """
    moves = running & (cursor.byte == 0)
    token = tl.where(moves, cursor.token - 1, cursor.token)
    running = running & (token >= start)
    moves = moves & running
    first, size, read = token_bytes(text, token, moves)
    if WHOLE:
        read = size
    first = tl.where(moves, first, cursor.first)
    byte = tl.where(moves, read, cursor.byte)
    reads = running & (byte > 0)
    byte = tl.where(reads, byte - 1, byte)
    char = tl.load(text.blob + first + byte, mask=reads, other=0).to(tl.int32)
    return Cursor(token, byte, first), running, moves & (read < size), reads, char


@triton.jit
def move_place(place, cursor, moves):
    """The place of the cursor where `moves`, else the place."""
    token = tl.where(moves, cursor.token, place.token)
    return Place(token, tl.where(moves, cursor.byte, place.byte))


# The kind of a byte; 0: none.
LETTER = tl.constexpr(1)
OTHER = tl.constexpr(2)
NOT_BARE = tl.constexpr(3)  # no bare answer begins with it
UNMATCHED = tl.constexpr(4)  # an opening brace that no brace closes
MATCHED = tl.constexpr(5)  # an opening brace that a brace closes
BRACE = tl.constexpr(6)  # a brace that may be escaped

# A held brace; 0: none.
OPENING = tl.constexpr(1)
CLOSING = tl.constexpr(2)


class Follower(NamedTuple):
    """What follows the byte that is read: the kind of the next byte that is no space."""

    kind: tl.tensor
    spaced: tl.tensor  # 1 where there are spaces before it
    token: tl.tensor  # its place
    byte: tl.tensor


class Braces(NamedTuple):
    """The braces that follow the byte that is read."""

    held: tl.tensor  # a brace whose backslashes are being counted: OPENING, CLOSING or 0
    escaped: tl.tensor  # 1 where an odd number of backslashes precedes it, so far
    depth: tl.tensor  # how many braces close


@triton.jit
def find_box(text, start, stop, active):
    r"""Finds the last \boxed{...} or \fbox{...}, else the last \boxed x.

    Returns which lanes have one, which have a bare one, and the place where the answer begins.
    """
    cursor = last_place(stop)
    zero = cursor.byte
    follower = Follower(zero, zero, stop, zero)
    after = follower  # the follower of a command whose end was read
    braces = Braces(zero, zero, zero)
    part = zero
    right = zero - 1  # the byte after the one that is read; -1: none
    found = active != active
    bare = active != active
    bare_place = Place(stop, zero)
    running = active
    while any_lane(running):
        cursor, running, skips, reads, char = step_back(text, cursor, start, running, WHOLE=False)
        braces, kind = resolve_brace(braces, follower.kind, char, skips, reads)
        # Skipped bytes are letters or other signs, and no end of a command.
        kind = tl.where(skips, LETTER, kind)
        spaced = tl.where(skips, 0, follower.spaced)
        follower = Follower(kind, spaced, follower.token, follower.byte)
        previous = tl.where(skips, 0, part)
        part = tl.where(reads, box_part(char, previous), previous)
        after = choose_follower(reads & ((part == 1) | (part == 6)), follower, after)
        is_command = reads & (char == const.BACKSLASH) & ((previous == 5) | (previous == 9))
        begins_bare = (after.spaced > 0) & ((after.kind == LETTER) | (after.kind == OTHER))
        is_bare = is_command & begins_bare & ~bare
        bare_place = move_place(bare_place, after, is_bare)
        bare = bare | is_bare
        found = found | (is_command & (after.kind == MATCHED))
        running = running & ~found
        follower = next_follower(follower, cursor, char, right, reads)
        braces = hold_brace(braces, char, reads)
        right = tl.where(reads, char, tl.where(skips, const.A, right))
    token = tl.where(found, after.token, bare_place.token)
    byte = tl.where(found, after.byte + 1, bare_place.byte)  # after the brace
    return found | bare, ~found, Place(token, byte)


@triton.jit
def resolve_brace(braces, kind, char, skips, reads):
    """Decides about a held brace. It is one if an even number of backslashes comes right before it.

    Returns the braces, and the kind of the next byte.
    """
    resolved = (braces.held > 0) & (skips | (reads & (char != const.BACKSLASH)))
    is_brace = resolved & (braces.escaped == 0)
    closes = is_brace & (braces.held == CLOSING)
    opens = is_brace & (braces.held == OPENING)
    matched = opens & (braces.depth > 0)
    kind = tl.where(closes & (kind == BRACE), OTHER, kind)
    opening_kind = tl.where(matched, MATCHED, UNMATCHED)
    kind = tl.where(opens & (kind == BRACE), opening_kind, kind)
    depth = braces.depth + closes.to(tl.int32) - matched.to(tl.int32)
    held = tl.where(resolved, 0, braces.held)
    escaped = tl.where(reads & (held > 0), 1 - braces.escaped, braces.escaped)
    return Braces(held, escaped, depth), kind


@triton.jit
def hold_brace(braces, char, reads):
    opens = reads & (char == const.OPEN_BRACE)
    closes = reads & (char == const.CLOSE_BRACE)
    held = tl.where(opens, OPENING, tl.where(closes, CLOSING, braces.held))
    return Braces(held, tl.where(opens | closes, 0, braces.escaped), braces.depth)


@triton.jit
def box_part(char, part):
    r"""How much of a command was read, from its end.

    d e x o b of \boxed are parts 1 to 5. x o b f of \fbox are parts 6 to 9.
    """
    next_part = tl.where(char == const.D, 1, 0)
    next_part = tl.where((char == const.E) & (part == 1), 2, next_part)
    next_part = tl.where(char == const.X, tl.where(part == 2, 3, 6), next_part)
    follows = ((char == const.O) & ((part == 3) | (part == 6))) | (
        (char == const.B) & ((part == 4) | (part == 7))
    )
    next_part = tl.where(follows, part + 1, next_part)
    return tl.where((char == const.F) & (part == 8), 9, next_part)


@triton.jit
def choose_follower(chooses, follower, other):
    return Follower(
        tl.where(chooses, follower.kind, other.kind),
        tl.where(chooses, follower.spaced, other.spaced),
        tl.where(chooses, follower.token, other.token),
        tl.where(chooses, follower.byte, other.byte),
    )


@triton.jit
def next_follower(follower, cursor, char, right, reads):
    """The follower of the byte before the one that is read. right: the byte after it."""
    is_text = reads & (char > const.SPACE)
    is_space = reads & (char <= const.SPACE)
    is_brace = (char == const.OPEN_BRACE) | (char == const.CLOSE_BRACE)
    ends_command = (
        (right <= const.SPACE) | (right == const.CLOSE_PARENTHESIS) | (right == const.CLOSE_BRACKET)
    )
    not_bare = (char == const.DOLLAR) | ((char == const.BACKSLASH) & ends_command)
    kind = tl.where(is_letter(char), LETTER, OTHER)
    kind = tl.where(is_brace, BRACE, kind)
    kind = tl.where(not_bare, NOT_BARE, kind)
    return Follower(
        tl.where(is_text, kind, follower.kind),
        tl.where(is_text, 0, tl.where(is_space, 1, follower.spaced)),
        tl.where(is_text, cursor.token, follower.token),
        tl.where(is_text, cursor.byte, follower.byte),
    )


@triton.jit
def find_tag(text, start, stop, active):
    """Finds the last <answer> before a </answer>.

    Returns which lanes have one, and the places where the answer begins and ends.
    """
    cursor = last_place(stop)
    zero = cursor.byte
    part = zero
    after = Place(stop, zero)
    end = Place(stop, zero)
    found = active != active
    closed = active != active
    running = active
    while any_lane(running):
        cursor, running, skips, reads, char = step_back(text, cursor, start, running, WHOLE=False)
        previous = tl.where(skips, 0, part)
        part = tl.where(reads, tag_part(char, previous), previous)
        after_char = Place(cursor.token, cursor.byte + 1)
        after = move_place(after, after_char, reads & (char == const.GREATER))
        opens = reads & (char == const.LESS)
        closes = opens & (previous == 8)
        end = move_place(end, cursor, closes)
        closed = closed | closes
        found = found | (opens & (previous == 7) & closed)
        running = running & ~found
    return found, after, end


@triton.jit
def tag_part(char, part):
    """How much of a tag was read, from its end.

    > r e w s n a are parts 1 to 7. The / of a closing tag is part 8.
    """
    next_part = tl.where(char == const.GREATER, 1, 0)
    next_part = tl.where((char == const.R) & (part == 1), 2, next_part)
    next_part = tl.where((char == const.E) & (part == 2), 3, next_part)
    next_part = tl.where((char == const.W) & (part == 3), 4, next_part)
    next_part = tl.where((char == const.S) & (part == 4), 5, next_part)
    next_part = tl.where((char == const.N) & (part == 5), 6, next_part)
    next_part = tl.where((char == const.A) & (part == 6), 7, next_part)
    return tl.where((char == const.SLASH) & (part == 7), 8, next_part)


@triton.jit
def find_number(text, start, stop, active):
    """Finds the last run of bytes that a number can have. It ends at its last digit.

    Returns the length of the run (0: none) and the place where it begins; which lanes have a byte
    before it, and the place of this byte.
    """
    cursor = last_place(stop)
    length = cursor.byte
    run = Place(stop, length)
    before = Place(stop, length)
    has_before = active != active
    running = active
    while any_lane(running):
        cursor, running, _, reads, char = step_back(text, cursor, start, running, WHOLE=True)
        belongs = tl.where(length > 0, is_number_byte(char), is_digit(char))
        inside = reads & belongs
        run = move_place(run, cursor, inside)
        ended = reads & (length > 0) & ~belongs
        length = tl.where(inside, length + 1, length)
        before = move_place(before, cursor, ended)
        has_before = has_before | ended
        running = running & ~ended
    return length, run, has_before, before


@triton.jit
def is_number_byte(char):
    r"""Digits, the characters . , / { } \ ! + - d f r t a c, and the bytes of two dashes.

    extract.py has the same list.
    """
    signs = (char >= const.PLUS) & (char <= const.NINE)  # + , - . / and digits
    letters = (
        (char == const.A)
        | (char == const.C)
        | (char == const.D)
        | (char == const.F)
        | (char == const.R)
        | (char == const.T)
    )
    others = (
        (char == const.EXCLAMATION)
        | (char == const.BACKSLASH)
        | (char == const.OPEN_BRACE)
        | (char == const.CLOSE_BRACE)
    )
    return signs | letters | others | is_dash_byte(char)


@triton.jit
def is_dash_byte(char):
    r"""A byte of \u2212 (e2 88 92) or of \u2013 (e2 80 93)."""
    return (char == 0xE2) | (char == 0x88) | (char == 0x92) | (char == 0x80) | (char == 0x93)
