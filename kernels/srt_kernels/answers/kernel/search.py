"""Triton twin of Finder.run: finds the answer of a rollout, from a finder's tables.

A place in a text is a token and a byte of it. The place after the last byte of a token is the first
byte of the next one. The end of a text is a symbol, too: the place before it is byte 0 of the token
`stop`, the place after it is byte 1.
"""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from typing import NamedTuple

import triton
import triton.language as tl

from srt_kernels.answers.kernel import constants as const
from srt_kernels.answers.kernel.finder_tables import (
    MODE_SHIFT,
    OP_BITS,
    RANK_BITS,
    RANK_SHIFT,
    Header,
)
from srt_kernels.answers.kernel.lanes import any_lane

OP_MASK = tl.constexpr((1 << OP_BITS) - 1)
ONE_MASK = tl.constexpr(1 << OP_BITS)
RANK_PLACE = tl.constexpr(RANK_SHIFT)
RANK_MASK = tl.constexpr((1 << RANK_BITS) - 1)
MODE_PLACE = tl.constexpr(MODE_SHIFT)


class Text(NamedTuple):
    """Pointers to the packed tokens and to reader.VocabularyTables; the last id of these."""

    tokens: tl.tensor
    blob: tl.tensor
    offsets: tl.tensor
    last_id: tl.tensor


class Place(NamedTuple):
    """A place in a text."""

    token: tl.tensor  # int64
    byte: tl.tensor


class Match(NamedTuple):
    """The match that a lane is looking for."""

    start: Place
    at: Place  # of the symbol to read next
    node: tl.tensor  # state of the automaton
    pattern: tl.tensor  # of the longest match so far
    one: Place  # after the first symbol
    end: Place  # of the longest match so far, without its lookahead


class Walk(NamedTuple):
    """What a lane remembers of the text so far; see finding/finder.py."""

    mode: tl.tensor
    depth: tl.tensor
    begin: Place
    rank: tl.tensor  # of the candidate; 0: none
    start: Place  # of the candidate
    end: Place
    cleared: tl.tensor
    broken: tl.tensor
    is_sure: tl.tensor  # a BREAK came before the candidate


@triton.jit
def load_header(header):
    """The Header of a finder."""
    return Header(
        classes=tl.load(header),
        transitions=tl.load(header + 1),
        width=tl.load(header + 2),
        accepts=tl.load(header + 3),
        lookahead=tl.load(header + 4),
        actions=tl.load(header + 5),
        kinds=tl.load(header + 6),
        starts=tl.load(header + 7),
        text_mode=tl.load(header + 8),
    )


@triton.jit
def choose(condition, place, other):
    """The place where the condition holds, else the other one."""
    token = tl.where(condition, place.token, other.token)
    return Place(token, tl.where(condition, place.byte, other.byte))


@triton.jit
def token_id(tokens, token, last_id, mask):
    """The id of a token. An id beyond the vocabulary is the last one."""
    value = tl.load(tokens + token, mask=mask, other=0)
    return tl.minimum(tl.maximum(value, 0), last_id)


@triton.jit
def read_byte(text, place, stop, reads):
    """Returns which lanes read a byte (an empty token has none), the byte, and the next place."""
    inside = reads & (place.token < stop)
    index = token_id(text.tokens, place.token, text.last_id, inside)
    first = tl.load(text.offsets + index, mask=inside, other=0)
    size = tl.load(text.offsets + index + 1, mask=inside, other=0) - first
    has_byte = inside & (place.byte < size)
    char = tl.load(text.blob + first + place.byte, mask=has_byte, other=0).to(tl.int32)
    moves = inside & (place.byte + 1 >= size)
    token = tl.where(moves, place.token + 1, place.token)
    byte = tl.where(moves, 0, tl.where(has_byte, place.byte + 1, place.byte))
    return has_byte, char, Place(token, byte)


@triton.jit
def search(text, words, header, first, start, stop, active):
    """Runs the finder over the tokens from `first` to `stop` of a text that begins at `start`.

    Returns the Walk at the end.
    """
    zero = tl.zeros_like(stop).to(tl.int32)
    no = active != active
    place = Place(first, zero)
    mode = tl.where(first == start, 0, header.text_mode)
    node = tl.load(words + header.starts + mode, mask=active, other=0)
    match = Match(place, place, node, zero, place, place)
    walk = Walk(mode, zero, place, zero, place, place, no, no, no)
    running = active
    while any_lane(running):
        match, ends = scan(text, words, header, match, stop, running)
        action = load_action(words, header, match.pattern, walk.mode, ends)
        takes_one = (action & ONE_MASK) > 0
        after = choose(takes_one, match.one, match.end)
        walk = step(walk, action, match.start, after, ends)
        node = tl.load(words + header.starts + walk.mode, mask=ends, other=0)
        match = Match(
            choose(ends, after, match.start),
            choose(ends, after, match.at),
            tl.where(ends, node, match.node),
            match.pattern,
            match.one,
            match.end,
        )
        is_over = (match.start.token >= stop) & (match.start.byte > 0)
        running = running & ~(ends & is_over)
    return walk


@triton.jit
def scan(text, words, header, match, stop, scans):
    """Reads one more symbol of the match. Returns it, and which lanes are at its end."""
    is_first = (match.at.token == match.start.token) & (match.at.byte == match.start.byte)
    at_end = scans & (match.at.token >= stop)
    has_byte, char, after = read_byte(text, match.at, stop, scans)
    reads_end = at_end & (match.at.byte == 0)
    after = choose(reads_end, Place(match.at.token, match.at.byte + 1), after)
    has_symbol = has_byte | reads_end
    symbol = tl.where(reads_end, const.END, char)
    symbol_class = tl.load(words + header.classes + symbol, mask=has_symbol, other=0)
    entry = words + header.transitions + match.node * header.width + symbol_class
    next_node = tl.load(entry, mask=has_symbol, other=const.DEAD)
    is_past = at_end & ~reads_end
    node = tl.where(has_symbol, next_node, tl.where(is_past, const.DEAD, match.node))
    alive = has_symbol & (node > const.DEAD)
    accepted = tl.load(words + header.accepts + node, mask=alive, other=-1)
    accepts = accepted >= 0
    lookahead = tl.load(words + header.lookahead + accepted, mask=accepts, other=0)
    end = choose(lookahead > 0, match.at, after)
    # An empty token moves the start, too: the first symbol comes after it.
    start = choose(scans & is_first & ~has_symbol & ~is_past, after, match.start)
    return Match(
        start,
        choose(scans, after, match.at),
        node,
        tl.where(accepts, accepted, match.pattern),
        choose(has_symbol & is_first, after, match.one),
        choose(accepts, end, match.end),
    ), scans & (node == const.DEAD)


@triton.jit
def load_action(words, header, pattern, mode, ends):
    """The word of an action; see finder_tables.py."""
    return tl.load(words + header.actions + mode * header.kinds + pattern, mask=ends, other=0)


@triton.jit
def step(walk, action, start, end, ends):
    """Does what an action says of the match from start to end. Returns the Walk."""
    op = tl.where(ends, action & OP_MASK, const.NOTHING)
    rank = (action >> RANK_PLACE) & RANK_MASK
    begins = (op == const.BEGIN) | (op == const.JOIN)
    begin = choose(begins, end, walk.begin)
    closes = (op == const.CLOSE) | (op == const.CLOSE_END) | (op == const.CLOSE_JOINED)
    depth = walk.depth + (op == const.OPEN).to(tl.int32) - closes.to(tl.int32)
    depth = tl.where(begins | (op == const.FIRST_OPEN), 1, depth)
    stays = (closes & (depth > 0)) | ((op == const.STOP) & (walk.rank == 0))
    clears = op == const.CLEAR
    is_span = op == const.SPAN
    offers = is_span | (op == const.FINISH) | ((op == const.CLOSE_END) & ~stays)
    takes = offers & (rank >= walk.rank)
    goes_on = (op == const.CLOSE_JOINED) & ~stays
    next_rank = tl.where(takes, rank, tl.where(clears, 0, walk.rank))
    candidate_end = choose(is_span, end, start)
    mode = tl.where(ends & ~stays, action >> MODE_PLACE, walk.mode)
    return Walk(
        mode,
        depth,
        begin,
        next_rank,
        choose(takes, choose(is_span, start, walk.begin), walk.start),
        choose(takes | goes_on, candidate_end, walk.end),
        walk.cleared | clears,
        walk.broken | (op == const.BREAK),
        tl.where(takes, walk.broken, walk.is_sure),
    )
