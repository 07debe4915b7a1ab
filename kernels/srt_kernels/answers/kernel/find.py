"""Triton: token ids -> the bytes of the answers.

marks_kernel   the last marks of a rollout (finding/hints.py); parallel over tokens
find_kernel    where the answer is (search.py), its bytes, and the hash that it has if it keeps its
               own text
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
    choose,
    load_header,
    read_byte,
    search,
    token_id,
)


class Span(NamedTuple):
    """Where an answer is."""

    start: Place
    end: Place
    is_box: tl.tensor  # it is the content of a box, or of several with other text between them


class Copy(NamedTuple):
    """What a lane has copied of an answer."""

    size: tl.tensor
    hash: tl.tensor  # FNV-1a of OWN_TEXT and of the copied bytes
    stripped_size: tl.tensor  # without trailing spaces
    stripped_hash: tl.tensor


class Boxes(NamedTuple):
    """What a lane knows of the boxes that it copies."""

    depth: tl.tensor  # open braces; 0: between two boxes
    escaped: tl.tensor  # whether the byte before is a backslash that escapes
    previous: tl.tensor  # the last byte between two boxes that is no space
    separators: tl.tensor  # bytes of the separator that are yet to be written
    piece_hash: tl.tensor  # FNV-1a of the box so far
    first_hash: tl.tensor  # of the first box
    pieces: tl.tensor  # boxes that are complete
    are_equal: tl.tensor  # all boxes so far have the same bytes


@triton.jit
def marks_kernel(
    token_ptr, bound_ptr, hint_ptr, think_ptr, run_on_ptr, top_ptr, vocab, BLOCK: tl.constexpr
):
    """think, run_on, top [R]: the last mark of each kind in a rollout, or -1."""
    rollout = tl.program_id(0)
    start = tl.load(bound_ptr + rollout).to(tl.int64)
    stop = tl.load(bound_ptr + rollout + 1).to(tl.int64)
    think = tl.full((BLOCK,), -1, tl.int64)
    run_on = think
    top = think
    for first in range(start, stop, BLOCK):
        at = first + tl.arange(0, BLOCK)
        here = load_hint(token_ptr, hint_ptr, at, vocab, at < stop)
        looks = (here & const.ANY_MAY) > 0
        before = load_hint(token_ptr, hint_ptr, at - 1, vocab, looks & (at - 1 >= start))
        second = load_hint(token_ptr, hint_ptr, at - 2, vocab, looks & (at - 2 >= start))
        think = tl.where(has_mark(here, before, second, const.THINK), at, think)
        run_on = tl.where(has_mark(here, before, second, const.RUN_ON), at, run_on)
        top = tl.where(has_mark(here, before, second, const.TOP_MARK), at, top)
    tl.store(think_ptr + rollout, tl.max(think, 0))
    tl.store(run_on_ptr + rollout, tl.max(run_on, 0))
    tl.store(top_ptr + rollout, tl.max(top, 0))


@triton.jit
def load_hint(token_ptr, hint_ptr, at, vocab, mask):
    index = token_id(token_ptr, at, vocab - 1, mask)
    return tl.load(hint_ptr + index, mask=mask, other=0)


@triton.jit
def has_mark(here, before, second, KIND: tl.constexpr):
    """Whether a token has a mark. before, second: the hints of the two tokens before it."""
    here = here >> (const.BITS * KIND)
    before = before >> (const.BITS * KIND)
    second = second >> (const.BITS * KIND)
    inner = ((before & const.INNER) > 0) & ((second & (const.STARTS | const.INNER)) > 0)
    follows = ((before & const.STARTS) > 0) | inner
    return ((here & const.HAS) > 0) | (((here & const.MAY) > 0) & follows)


@triton.jit
def find_kernel(
    token_ptr,
    bound_ptr,
    think_ptr,
    run_on_ptr,
    top_ptr,
    blob_ptr,
    offset_ptr,
    word_ptr,
    header_ptr,
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
    text = Text(token_ptr, blob_ptr, offset_ptr, vocab - 1)
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    in_batch = lane < rollouts
    start = tl.load(bound_ptr + lane, mask=in_batch, other=0).to(tl.int64)
    stop = tl.load(bound_ptr + lane + 1, mask=in_batch, other=0).to(tl.int64)
    zero = tl.zeros_like(start).to(tl.int32)
    if RULE == "whole":
        span = Span(Place(start, zero), Place(stop, zero), in_batch != in_batch)
        found = in_batch
    else:
        think = tl.load(think_ptr + lane, mask=in_batch, other=-1)
        run_on = tl.load(run_on_ptr + lane, mask=in_batch, other=-1)
        top = tl.load(top_ptr + lane, mask=in_batch, other=-1)
        found, span = find_span(
            text, word_ptr, header_ptr, start, stop, think, run_on, top, in_batch, RULE
        )
    raw = raw_ptr + lane.to(tl.int64) * const.ROW
    copy = copy_span(text, span, stop, raw, found)
    tl.store(size_ptr + lane, tl.where(found, copy.stripped_size, 0), mask=in_batch)
    tl.store(hash_ptr + lane, copy.stripped_hash, mask=in_batch)


@triton.jit
def find_span(text, words, header_ptr, start, stop, think, run_on, top, active, RULE: tl.constexpr):
    """Reads each text from near its end, and then from farther away; see hints.first_places.

    Returns which lanes have an answer, and its Span.
    """
    header = load_header(header_ptr)
    pending = active
    if (RULE == "boxed") | (RULE == "tag"):
        pending = active & (top >= start)
    anchor = top
    if RULE == "last_number":
        anchor = stop
    anchor = tl.where(run_on >= start, start, anchor)
    anchor = tl.where(think >= start, think, anchor)
    zero = tl.zeros_like(stop).to(tl.int32)
    span = Span(Place(start, zero), Place(start, zero), active != active)
    rank = zero
    width = tl.zeros_like(stop) + const.NEARBY
    first = anchor - width
    while any_lane(pending):
        first = tl.maximum(first, start)
        walk = search(text, words, header, first, start, stop, pending)
        is_box = active != active
        is_sure = walk.is_sure & (walk.rank > 0)
        if RULE == "boxed":
            is_box = walk.rank == const.BOXED_RANK
            is_sure = is_sure & is_box
        elif RULE == "answer":
            is_box = walk.rank == const.ANSWER_RANK
            is_sure = is_sure & is_box
        elif RULE == "tag":
            is_sure = walk.rank > 0
        sure = (first == start) | walk.cleared | (is_sure & (think < start))
        ends = pending & sure
        rank = tl.where(ends, walk.rank, rank)
        span = Span(
            choose(ends, walk.start, span.start),
            choose(ends, walk.end, span.end),
            tl.where(ends, is_box, span.is_box),
        )
        pending = pending & ~sure
        width = width * const.WIDENING
        first = tl.where(think >= start, start, anchor - width)
    return active & (rank > 0), span


@triton.jit
def copy_span(text, span, stop, raw, active):
    """Copies the bytes of an answer to `raw`, and returns them as a Copy.

    Of a list of boxes it copies what is in them, and a separator between two. Of equal boxes it
    keeps one.
    """
    zero = tl.zeros_like(stop).to(tl.int32)
    no = active != active
    place = span.start
    basis = tl.zeros_like(stop) + const.OWN_TEXT_BASIS
    piece_basis = tl.zeros_like(stop) + const.BASIS
    copy = Copy(zero, basis, zero, basis)
    kept = copy  # of the first box
    boxes = Boxes(zero + 1, no, zero, zero, piece_basis, piece_basis, zero, ~no)
    running = active
    while any_lane(running):
        is_end = (place.token > span.end.token) | (
            (place.token == span.end.token) & (place.byte >= span.end.byte)
        )
        is_over = running & is_end & (boxes.separators == 0)
        running = running & ~is_over
        separates = running & (boxes.separators > 0)
        reads = running & ~separates
        reads, char, after = read_byte(text, place, stop, reads)
        moves = running & ~separates
        place = choose(moves, after, place)
        boxes, output, closes = step_boxes(boxes, span.is_box, char, reads, separates, is_over)
        copy = append_byte(copy, raw, output)
        is_first = closes & (boxes.pieces == 1)
        kept = Copy(
            zero,
            basis,
            tl.where(is_first, copy.stripped_size, kept.stripped_size),
            tl.where(is_first, copy.stripped_hash, kept.stripped_hash),
        )
    keeps = span.is_box & boxes.are_equal
    return Copy(
        copy.size,
        copy.hash,
        tl.where(keeps, kept.stripped_size, copy.stripped_size),
        tl.where(keeps, kept.stripped_hash, copy.stripped_hash),
    )


@triton.jit
def step_boxes(boxes, is_box, char, reads, separates, is_over):
    """Returns the next Boxes, the byte to write (-1: none), and which lanes end a box.

    is_over: which lanes are at the end of the span, where the last box ends.
    """
    inside = reads & (boxes.depth > 0)
    counts = inside & is_box & ~boxes.escaped
    opens = counts & (char == const.OPEN_BRACE)
    shuts = counts & (char == const.CLOSE_BRACE)
    depth = boxes.depth + opens.to(tl.int32) - shuts.to(tl.int32)
    closes = (shuts & (depth == 0)) | (is_over & is_box)
    # Between boxes only the d of \boxed and the x of \fbox precede a brace.
    is_name = (boxes.previous == const.D) | (boxes.previous == const.X)
    between = reads & (boxes.depth == 0)
    enters = between & (char == const.OPEN_BRACE) & is_name
    previous = tl.where(between & (char > const.SPACE), char, boxes.previous)
    is_text = inside & ~closes
    output = tl.where(is_text, char, -1)
    comma_or_space = tl.where(boxes.separators == 2, const.COMMA, const.SPACE)
    output = tl.where(separates, comma_or_space, output)
    separators = tl.where(enters, 2, boxes.separators - separates.to(tl.int32))
    value = (boxes.piece_hash ^ char) * const.PRIME
    piece_hash = tl.where(is_text, value, boxes.piece_hash)
    is_first = closes & (boxes.pieces == 0)
    first_hash = tl.where(is_first, piece_hash, boxes.first_hash)
    differs = closes & (piece_hash != first_hash)
    return (
        Boxes(
            tl.where(enters, 1, depth),
            tl.where(inside, ~boxes.escaped & (char == const.BACKSLASH), boxes.escaped),
            tl.where(closes, 0, previous),
            separators,
            tl.where(enters, const.BASIS, piece_hash),
            first_hash,
            boxes.pieces + closes.to(tl.int32),
            boxes.are_equal & ~differs,
        ),
        output,
        closes,
    )


@triton.jit
def append_byte(copy, raw, output):
    """Writes a byte (-1: none), but no leading space."""
    writes = (output >= 0) & ((output > const.SPACE) | (copy.size > 0))
    tl.store(raw + copy.size, output.to(tl.uint8), mask=writes & (copy.size < const.ROW))
    size = tl.where(writes, copy.size + 1, copy.size)
    value = tl.where(writes, (copy.hash ^ output) * const.PRIME, copy.hash)
    keeps = writes & (output > const.SPACE)
    return Copy(
        size,
        value,
        tl.where(keeps, size, copy.stripped_size),
        tl.where(keeps, value, copy.stripped_hash),
    )
