"""Triton: token ids -> the bytes of the answers.

marks_kernel   the last token of a rollout that can hold an answer's mark; parallel over tokens
find_kernel    from there backwards to the start of the answer, then forwards: its bytes, and
               the hash that it has if it keeps its own text
"""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from typing import NamedTuple

import triton
import triton.language as tl

from srt_kernels.answers.kernel import constants as const
from srt_kernels.answers.kernel.lanes import any_lane
from srt_kernels.answers.kernel.search import (
    Place,
    Text,
    find_box,
    find_number,
    find_tag,
    token_bytes,
    token_id,
)
from srt_kernels.answers.kernel.walk import Tables, walk


class Span(NamedTuple):
    """Where an answer is, as far as a search knows."""

    start: Place
    end: Place  # of the rule tag
    bare: tl.tensor  # of the rule boxed: it has no braces
    window: tl.tensor  # of the rule last_number: how many bytes are read
    is_short: tl.tensor  # of the rule last_number: the window is searched for numbers


class BoxState(NamedTuple):
    """What came before the byte that is read, inside of a box."""

    depth: tl.tensor  # open braces
    escaped: tl.tensor  # whether an odd number of backslashes comes right before it
    pending: tl.tensor  # the last byte of a bare answer, which may be no part of it; -1: none


class Bytes(NamedTuple):
    """The bytes of an answer that were written."""

    size: tl.tensor
    hash: tl.tensor  # FNV-1a of OWN_TEXT and of them
    stripped_size: (
        tl.tensor
    )  # without trailing spaces, and without the punctuation of a bare answer
    stripped_hash: tl.tensor


@triton.jit
def marks_kernel(token_ptr, bound_ptr, hint_ptr, mark_ptr, vocab, BLOCK: tl.constexpr):
    """mark [R]: the last token of a rollout that can hold an answer's mark, or -1."""
    start = tl.load(bound_ptr + tl.program_id(0)).to(tl.int64)
    stop = tl.load(bound_ptr + tl.program_id(0) + 1).to(tl.int64)
    last = tl.full((BLOCK,), -1, tl.int64)
    for first in range(start, stop, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < stop
        index = token_id(token_ptr, at, vocab - 1, inside)
        hint = tl.load(hint_ptr + index, mask=inside, other=0)
        has_mark = (hint & const.HAS_MARK) > 0
        needs = (hint & (const.HAS_MARK | const.MAY_HAVE_MARK)) == const.MAY_HAVE_MARK
        looks = needs & (at > start)
        index = token_id(token_ptr, at - 1, vocab - 1, looks)
        previous = tl.load(hint_ptr + index, mask=looks, other=0)
        follows = needs & ((previous & const.MAY_PRECEDE_MARK) > 0)
        last = tl.where(has_mark | follows, at, last)
    tl.store(mark_ptr + tl.program_id(0), tl.max(last, 0))


@triton.jit
def find_kernel(
    token_ptr,
    bound_ptr,
    mark_ptr,
    blob_ptr,
    offset_ptr,
    hint_ptr,
    word_ptr,
    header_ptr,
    power_ptr,
    raw_ptr,
    size_ptr,
    hash_ptr,
    rollouts,
    vocab,
    RULE: tl.constexpr,
    LANES: tl.constexpr,
):
    """The bytes of each answer.

    raw [R, ROW]: up to MAX_BYTES of them, stripped. size [R]: how many there are; 0: no answer.
    hash [R]: FNV-1a of OWN_TEXT and all of them.
    """
    text = Text(token_ptr, blob_ptr, offset_ptr, hint_ptr, vocab - 1)
    tables = Tables(word_ptr, header_ptr, power_ptr)
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    in_batch = lane < rollouts
    start = tl.load(bound_ptr + lane, mask=in_batch, other=0).to(tl.int64)
    stop = tl.load(bound_ptr + lane + 1, mask=in_batch, other=0).to(tl.int64)
    mark = tl.load(mark_ptr + lane, mask=in_batch, other=-1)
    raw = raw_ptr + lane.to(tl.int64) * const.ROW
    active, span = find_span(text, start, stop, mark, in_batch & (mark >= start), RULE)
    answer = copy_span(text, span, stop, raw, active, RULE)
    size = answer.stripped_size
    if RULE == "last_number":
        searches = active & span.is_short
        number_size = keep_last_number(tables, raw, answer.size, searches)
        size = tl.where(searches, number_size, size)
    tl.store(size_ptr + lane, tl.where(active, size, 0), mask=in_batch)
    tl.store(hash_ptr + lane, answer.stripped_hash, mask=in_batch)


@triton.jit
def find_span(text, start, stop, mark, active, RULE: tl.constexpr):
    """Returns which lanes have an answer, and its Span."""
    zero = tl.zeros_like(start).to(tl.int32)
    no = active != active
    if RULE == "boxed":
        found, bare, place = find_box(text, start, stop, active)
        span = Span(place, Place(stop, zero), bare, zero, no)
    elif RULE == "tag":
        found, place, end = find_tag(text, start, mark + 1, active)
        span = Span(place, end, no, zero, no)
    elif RULE == "last_number":
        length, run, has_before, before = find_number(text, start, mark + 1, active)
        found = active & (length > 0)
        is_short = length <= const.MAX_BYTES
        # The byte before the run decides about a sign. The byte after it may close a \frac{1}{2}.
        widens = is_short & has_before
        token = tl.where(widens, before.token, run.token)
        byte = tl.where(widens, before.byte, run.byte)
        window = tl.where(is_short, length + has_before.to(tl.int32) + 1, length)
        span = Span(Place(token, byte), Place(stop, zero), no, window, is_short)
    else:
        found = active
        span = Span(Place(start, zero), Place(stop, zero), no, zero, no)
    return found, span


@triton.jit
def copy_span(text, span, stop, raw, active, RULE: tl.constexpr):
    """Copies the bytes of an answer to `raw` until its end, and returns them as Bytes."""
    zero = tl.zeros_like(stop).to(tl.int32)
    token = span.start.token
    byte = span.start.byte
    first = zero
    length = zero - 1  # of the token; -1: not loaded
    count = zero
    box = BoxState(zero + 1, active != active, zero - 1)
    basis = zero.to(tl.int64) + const.OWN_TEXT_BASIS
    answer = Bytes(zero, basis, zero, basis)
    running = active
    while any_lane(running):
        moves = running & (byte >= length)
        ahead = moves & (length >= 0)
        token = tl.where(ahead, token + 1, token)
        byte = tl.where(ahead, 0, byte)
        over = running & (token >= stop)
        if RULE == "tag":
            at_end = (token == span.end.token) & (byte >= span.end.byte)
            over = over | (running & at_end)
        next_first, next_length, _ = token_bytes(text, token, moves & ~over)
        first = tl.where(moves, next_first, first)
        length = tl.where(moves, next_length, length)
        reads = running & ~over & (byte < length)
        char = tl.load(text.blob + first + byte, mask=reads, other=0).to(tl.int32)
        byte = tl.where(reads, byte + 1, byte)
        output = tl.where(reads, char, -1)
        if RULE == "boxed":
            box, output, over = step_in_box(box, span.bare, char, output, reads, over)
        if RULE == "last_number":
            count = tl.where(reads, count + 1, count)
            over = over | (reads & (count >= span.window))
        answer = append_byte(answer, raw, output, span.bare, running, RULE)
        running = running & ~over
    return answer


@triton.jit
def step_in_box(box, bare, char, output, reads, over):
    """Returns the next BoxState, the byte to write (-1: none), and which lanes are at the end."""
    opens = reads & ~box.escaped & (char == const.OPEN_BRACE)
    closes = reads & ~box.escaped & (char == const.CLOSE_BRACE)
    depth = tl.where(bare, 1, box.depth + opens.to(tl.int32) - closes.to(tl.int32))
    is_closing = (char == const.CLOSE_PARENTHESIS) | (char == const.CLOSE_BRACKET)
    ends_bare = (
        (char <= const.SPACE) | ((char == const.DOLLAR) & ~box.escaped) | (is_closing & box.escaped)
    )
    over = over | (reads & tl.where(bare, ends_bare, depth == 0))
    # A bare answer does not include a backslash before a space, a closing bracket or the end of the
    # text. So its bytes are written one step later.
    output = tl.where(over, -1, output)
    drops = over & box.escaped
    delayed = tl.where(drops, -1, box.pending)
    steps = reads | over
    next_output = tl.where(bare, tl.where(steps, delayed, -1), output)
    next_pending = tl.where(over, -1, char)
    pending = tl.where(bare & steps, next_pending, box.pending)
    escapes = reads & ~box.escaped & (char == const.BACKSLASH)
    return BoxState(depth, escapes | (box.escaped & ~reads), pending), next_output, over


@triton.jit
def append_byte(answer, raw, output, bare, running, RULE: tl.constexpr):
    """Writes a byte (-1: none). Leading spaces are left out, except by the rule last_number."""
    is_number: tl.constexpr = RULE == "last_number"
    writes = running & (output >= 0)
    writes = writes & ((output > const.SPACE) | (answer.size > 0) | is_number)
    fits = answer.size < const.ROW
    tl.store(raw + answer.size, output.to(tl.uint8), mask=writes & fits)
    size = tl.where(writes, answer.size + 1, answer.size)
    value = tl.where(writes, (answer.hash ^ output) * const.PRIME, answer.hash)
    is_punctuation = (
        (output == const.FULL_STOP)
        | (output == const.COMMA)
        | (output == const.SEMICOLON)
        | (output == const.COLON)
    )
    is_inner = (output > const.SPACE) & ~(bare & is_punctuation)
    keeps = writes & (is_inner | is_number)
    stripped_size = tl.where(keeps, size, answer.stripped_size)
    stripped_hash = tl.where(keeps, value, answer.stripped_hash)
    return Bytes(size, value, stripped_size, stripped_hash)


@triton.jit
def keep_last_number(tables, raw, size, active):
    """Moves the last number in the `size` bytes of `raw` to its start. Returns its size."""
    tl.debug_barrier()  # Another thread may have written what a lane reads.
    _, _, place, number_size = walk(
        tables, const.SEARCH, raw, raw, size, size * 0, active, SEARCHES=True
    )
    i = size * 0
    while any_lane(active & (i < number_size)):
        copies = active & (i < number_size)
        char = tl.load(raw + place + i, mask=copies, other=0)
        tl.store(raw + i, char, mask=copies)
        i += 1
    return number_size
