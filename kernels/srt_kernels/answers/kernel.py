r"""Triton: token ids -> keys of the answers. A rollout has one lane; the lanes of a program go in step, byte by byte.

Three kernels: marks (where, if anywhere, a look is worth it; in parallel over tokens), find (backwards from there to the
answer's start, then forwards: its bytes, and their hash in case that it keeps its own text), form (the stages of
answer_form.py by their tables, and the hash of what they make). A place in a text is a token and a byte of it.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.answers import canonical as answer_form
from srt_kernels.answers.canonical import (
    FNV_PRIME,
    LIMIT,
    MAX_BYTES,
    MEANING,
    MIX,
    OWN_TEXT,
    Stage,
    fnv,
    signed,
    stages,
)
from srt_kernels.core.backend import LAUNCH_OPTIONS

LANES, MARK_BLOCK, MARK_WARPS = 32, 1024, 4
ROW = tl.constexpr(MAX_BYTES + 8)  # bytes of a rollout in each buffer
MAX = tl.constexpr(MAX_BYTES)
TOO_DEEP = tl.constexpr(2 * answer_form.MAX_DEPTH)  # bits of the stack
TOP = tl.constexpr(LIMIT - 1)
BASIS, OWN_BASIS, PRIME = (tl.constexpr(signed(h)) for h in (fnv(b""), fnv(OWN_TEXT), FNV_PRIME))
MIX_1, MIX_2 = (tl.constexpr(signed(h)) for h in MIX)
DROP, COPY, LOWER, ALNUM, NUMBER = (tl.constexpr(body) for body in range(5))
DIGIT, POINT, MINUS, OVER, MIXED, BRACE, TIMES, POWER, EXPONENT = (
    tl.constexpr(meaning) for meaning in range(1, 10)
)
NUMERATOR, DENOMINATOR, TEN, POWER_OF_TEN = (tl.constexpr(part) for part in range(4))
END, FIELDS, HEADER = (
    tl.constexpr(256),
    tl.constexpr(8),
    tl.constexpr(10),
)  # FIELDS of an act, HEADER of a stage
SEARCH = tl.constexpr(4)  # the stage that finds numbers in a text


# ---- the stages as tables ----


class _Packer:
    """Words of a table; the same words are there once."""

    def __init__(self):
        self.words: list[int] = []
        self.places: dict[tuple[int, ...], int] = {}

    def put(self, words) -> int:
        words = tuple(words)
        if words not in self.places:
            self.places[words] = len(self.words)
            self.words += words
        return self.places[words]


def _pack(stage: Stage, first_states: list[int], packer: _Packer) -> list[int]:
    """The stage's header."""
    rows: dict[tuple[int, ...], int] = {}
    acts = []
    for state in stage.states:
        for kind in stage.kinds:
            act = stage.acts[state, kind]
            texts = [text.encode() for text in (act.before, act.after)]
            places = [number for text in texts for number in (packer.put(text), len(text))]
            acts.append(
                rows.setdefault(
                    (stage.states.index(act.state), act.body, *places, act.take, act.push),
                    len(rows),
                )
            )
    automaton = stage.automaton
    return [
        packer.put(automaton.classes),
        packer.put(sum(automaton.following, [])),
        len(automaton.following[0]),
        packer.put(automaton.accepts),
        packer.put(stage.context),
        packer.put(acts),
        len(stage.kinds),
        stage.kinds.index("close") if "close" in stage.kinds else -2,
        packer.put(sum(rows, ())),
        packer.put(first_states),
    ]


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """int32 table, which begins with MEANING; its headers [5, HEADER] int32; int64 powers of ten."""
    from srt_kernels.answers.extract import numbers_in_text

    packer, headers, before = _Packer(), [], [()]
    packer.put(MEANING)
    for stage, enter in stages():
        headers.append(
            _pack(stage, [stage.states.index(enter(*state)) for state in before], packer)
        )
        before = stage.states
    headers.append(_pack(numbers_in_text(), [0], packer))
    tables = (packer.words, headers)
    return *(torch.tensor(t, dtype=torch.int32, device=device) for t in tables), 10 ** torch.arange(
        19, device=device
    )


# ---- where to look ----


@triton.jit
def marks_kernel(token_ptr, bound_ptr, hint_ptr, mark_ptr, vocab, BLOCK: tl.constexpr):
    """mark [R]: the last token of the rollout that can hold an answer's mark, or -1."""
    start = tl.load(bound_ptr + tl.program_id(0)).to(tl.int64)
    stop = tl.load(bound_ptr + tl.program_id(0) + 1).to(tl.int64)
    last = tl.full((BLOCK,), -1, tl.int64)
    for first in range(start, stop, BLOCK):
        at = first + tl.arange(0, BLOCK)
        token = tl.load(token_ptr + at, mask=at < stop, other=0)
        hint = tl.load(
            hint_ptr + tl.minimum(tl.maximum(token, 0), vocab - 1), mask=at < stop, other=0
        )
        maybe = (hint & 3) == 2
        token = tl.load(token_ptr + at - 1, mask=maybe & (at > start), other=0)
        before = tl.load(
            hint_ptr + tl.minimum(tl.maximum(token, 0), vocab - 1),
            mask=maybe & (at > start),
            other=0,
        )
        last = tl.where(((hint & 1) > 0) | (maybe & ((before & 4) > 0)), at, last)
    tl.store(mark_ptr + tl.program_id(0), tl.max(last, 0))


@triton.jit
def token_bytes(token_ptr, at, offset_ptr, hint_ptr, vocab, mask):
    """-> where the bytes of the token at `at` begin, how many there are, how many of them a search reads."""
    token = tl.minimum(tl.maximum(tl.load(token_ptr + at, mask=mask, other=0), 0), vocab - 1)
    first = tl.load(offset_ptr + token, mask=mask, other=0)
    size = tl.load(offset_ptr + token + 1, mask=mask, other=0) - first
    return first, size, tl.load(hint_ptr + token, mask=mask, other=0) >> 3


@triton.jit
def step_back(
    token_ptr,
    at,
    byte,
    first,
    start,
    blob_ptr,
    offset_ptr,
    hint_ptr,
    vocab,
    running,
    WHOLE: tl.constexpr,
):
    """One byte towards the start of the text: token, byte, where the token's bytes begin, whether there is more (running).

    Then whether bytes of a new token were skipped, which its hint allows unless WHOLE; whether a byte was read (an empty
    token has none); the byte.
    """
    move = running & (byte == 0)
    at = tl.where(move, at - 1, at)
    running = running & (at >= start)
    move = move & running
    new_first, size, read = token_bytes(token_ptr, at, offset_ptr, hint_ptr, vocab, move)
    if WHOLE:
        read = size
    first = tl.where(move, new_first, first)
    byte = tl.where(move, read, byte)
    reads = running & (byte > 0)
    byte = tl.where(reads, byte - 1, byte)
    c = tl.load(blob_ptr + first + byte, mask=reads, other=0).to(tl.int32)
    return at, byte, first, running, move & (read < size), reads, c


@triton.jit
def is_letter(c):
    return ((c | 32) >= 97) & ((c | 32) <= 122)


@triton.jit
def is_dash(c):
    """A byte of one of the characters \u2212 and \u2013."""
    return (c == 226) | (c == 136) | (c == 146) | (c == 128) | (c == 147)


@triton.jit
def is_number_byte(c):
    """Bytes that a number in a text can have: answer_key._NUMBER_BYTES."""
    digits = (c >= 43) & (c <= 57)  # + , - . / and digits
    letters = (c == 97) | (c == 99) | (c == 100) | (c == 102) | (c == 114) | (c == 116)
    return digits | letters | (c == 33) | (c == 92) | (c == 123) | (c == 125) | is_dash(c)


NOTHING, LETTER, OTHER, SENSELESS, UNMATCHED, MATCHED, BRACKET = (
    tl.constexpr(kind) for kind in range(7)
)


@triton.jit
def find_box(token_ptr, start, stop, blob_ptr, offset_ptr, hint_ptr, vocab, active):
    r"""Backwards from `stop` to the last \boxed{...} or \fbox{...}, else \boxed x: found, bare, token and byte of its start.

    What comes after the place that is read is known by: kind of the next byte that is no space (BRACKET: a brace that may
    be escaped), whether there are spaces before it, where it is; and of the braces there, how many close.
    """
    at = stop
    first = tl.zeros_like(start).to(tl.int32)
    (
        byte,
        held,
        escaped,
        depth,
        kind,
        spaced,
        next_byte,
        part,
        after_kind,
        after_spaced,
        after_byte,
    ) = (
        first,
        first,
        first,
        first,
        first,
        first,
        first,
        first,
        first,
        first,
        first,
    )
    right = first - 1  # the byte after the one that is read; -1: none
    next_token, after_token = stop, stop
    found = active != active
    bare = active != active
    bare_token, bare_byte = stop, byte
    running = active
    while tl.max(running.to(tl.int32), 0) > 0:
        at, byte, first, running, skipped, reads, c = step_back(
            token_ptr,
            at,
            byte,
            first,
            start,
            blob_ptr,
            offset_ptr,
            hint_ptr,
            vocab,
            running,
            WHOLE=False,
        )
        # A brace is one if an even number of backslashes comes right before it.
        resolved = (held > 0) & (skipped | (reads & (c != 92)))
        closes = resolved & (held == 2) & (escaped == 0)
        opens = resolved & (held == 1) & (escaped == 0)
        matched = opens & (depth > 0)
        kind = tl.where(closes & (kind == BRACKET), OTHER, kind)
        kind = tl.where(opens & (kind == BRACKET), tl.where(matched, MATCHED, UNMATCHED), kind)
        depth = depth + closes.to(tl.int32) - matched.to(tl.int32)
        held = tl.where(resolved, 0, held)
        escaped = tl.where(reads & (held > 0), 1 - escaped, escaped)
        # Skipped bytes are some letters or others, and never a command's end.
        kind = tl.where(skipped, LETTER, kind)
        spaced = tl.where(skipped, 0, spaced)
        part = tl.where(skipped, 0, part)
        # The command from its end: d e x o b are parts 1 to 5, of the other x o b f are parts 6 to 9.
        was = part
        part = tl.where(c == 100, 1, 0)
        part = tl.where((c == 101) & (was == 1), 2, part)
        part = tl.where(c == 120, tl.where(was == 2, 3, 6), part)
        part = tl.where((c == 111) & ((was == 3) | (was == 6)), was + 1, part)
        part = tl.where((c == 98) & ((was == 4) | (was == 7)), was + 1, part)
        part = tl.where((c == 102) & (was == 8), 9, part)
        part = tl.where(reads, part, was)
        begins = reads & ((part == 1) | (part == 6))
        after_kind = tl.where(begins, kind, after_kind)
        after_spaced = tl.where(begins, spaced, after_spaced)
        after_token = tl.where(begins, next_token, after_token)
        after_byte = tl.where(begins, next_byte, after_byte)
        command = reads & (c == 92) & ((was == 5) | (was == 9))
        first_bare = (
            command & (after_spaced > 0) & ((after_kind == LETTER) | (after_kind == OTHER)) & ~bare
        )
        bare_token = tl.where(first_bare, after_token, bare_token)
        bare_byte = tl.where(first_bare, after_byte, bare_byte)
        bare = bare | first_bare
        found = found | (command & (after_kind == MATCHED))
        running = running & ~found
        # What comes after the byte before this one.
        space = reads & (c <= 32)
        text = reads & (c > 32)
        new_kind = tl.where(is_letter(c), LETTER, OTHER)
        new_kind = tl.where((c == 123) | (c == 125), BRACKET, new_kind)
        ends = (right <= 32) | (right == 41) | (right == 93)
        new_kind = tl.where((c == 36) | ((c == 92) & ends), SENSELESS, new_kind)
        kind = tl.where(text, new_kind, kind)
        spaced = tl.where(text, 0, tl.where(space, 1, spaced))
        next_token = tl.where(text, at, next_token)
        next_byte = tl.where(text, byte, next_byte)
        held = tl.where(reads & (c == 123), 1, tl.where(reads & (c == 125), 2, held))
        escaped = tl.where(reads & ((c == 123) | (c == 125)), 0, escaped)
        right = tl.where(reads, c, tl.where(skipped, 97, right))
    return (
        found | bare,
        ~found,
        tl.where(found, after_token, bare_token),
        tl.where(found, after_byte + 1, bare_byte),
    )


@triton.jit
def find_tag(token_ptr, start, stop, blob_ptr, offset_ptr, hint_ptr, vocab, active):
    """Backwards from `stop` to the last <answer> before a </answer>: found, token and byte of start and of end."""
    at = stop
    first = tl.zeros_like(start).to(tl.int32)
    byte, part, after_byte, end_byte = first, first, first, first
    after_token, end_token = stop, stop
    found = active != active
    closed = active != active
    running = active
    while tl.max(running.to(tl.int32), 0) > 0:
        at, byte, first, running, skipped, reads, c = step_back(
            token_ptr,
            at,
            byte,
            first,
            start,
            blob_ptr,
            offset_ptr,
            hint_ptr,
            vocab,
            running,
            WHOLE=False,
        )
        part = tl.where(skipped, 0, part)
        # > r e w s n a are parts 1 to 7, the / of a closing tag is 8.
        was = part
        part = tl.where(c == 62, 1, 0)
        part = tl.where((c == 114) & (was == 1), 2, part)
        part = tl.where((c == 101) & (was == 2), 3, part)
        part = tl.where((c == 119) & (was == 3), 4, part)
        part = tl.where((c == 115) & (was == 4), 5, part)
        part = tl.where((c == 110) & (was == 5), 6, part)
        part = tl.where((c == 97) & (was == 6), 7, part)
        part = tl.where((c == 47) & (was == 7), 8, part)
        part = tl.where(reads, part, was)
        after_token = tl.where(reads & (c == 62), at, after_token)
        after_byte = tl.where(reads & (c == 62), byte + 1, after_byte)
        closes = reads & (c == 60) & (was == 8)
        end_token = tl.where(closes, at, end_token)
        end_byte = tl.where(closes, byte, end_byte)
        closed = closed | closes
        found = found | (reads & (c == 60) & (was == 7) & closed)
        running = running & ~found
    return found, after_token, after_byte, end_token, end_byte


@triton.jit
def find_number(token_ptr, start, stop, blob_ptr, offset_ptr, hint_ptr, vocab, active):
    """Backwards from `stop` over the last run of bytes of numbers: its length (0: none), token and byte of its start.

    It ends at its last digit. Also whether there is a byte before it, and where that is.
    """
    at = stop
    first = tl.zeros_like(start).to(tl.int32)
    byte, length, from_byte, before_byte = first, first, first, first
    from_token, before_token = stop, stop
    before = active != active
    running = active
    while tl.max(running.to(tl.int32), 0) > 0:
        at, byte, first, running, skipped, reads, c = step_back(
            token_ptr,
            at,
            byte,
            first,
            start,
            blob_ptr,
            offset_ptr,
            hint_ptr,
            vocab,
            running,
            WHOLE=True,
        )
        inside = reads & tl.where(length > 0, is_number_byte(c), (c >= 48) & (c <= 57))
        length = tl.where(inside, length + 1, length)
        from_token = tl.where(inside, at, from_token)
        from_byte = tl.where(inside, byte, from_byte)
        ended = reads & (length > 0) & ~inside
        before = before | ended
        before_token = tl.where(ended, at, before_token)
        before_byte = tl.where(ended, byte, before_byte)
        running = running & ~ended
    return length, from_token, from_byte, before, before_token, before_byte


# ---- the bytes of the answer ----


@triton.jit
def find_kernel(
    token_ptr,
    bound_ptr,
    mark_ptr,
    blob_ptr,
    offset_ptr,
    hint_ptr,
    table_ptr,
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
    """raw [R, ROW]: up to MAX bytes of the answer, stripped; size [R]: how many it has (0: no answer); hash [R]: FNV-1a of
    OWN_TEXT and all of them."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    active = lane < rollouts
    start = tl.load(bound_ptr + lane, mask=active, other=0).to(tl.int64)
    stop = tl.load(bound_ptr + lane + 1, mask=active, other=0).to(tl.int64)
    mark = tl.load(mark_ptr + lane, mask=active, other=-1)
    raw = raw_ptr + lane.to(tl.int64) * ROW
    active = active & (mark >= start)
    byte = tl.zeros((LANES,), tl.int32)
    end_byte = byte
    window = byte  # of the rule last_number: bytes that are looked through for numbers
    bare = active != active
    at = start
    end_token = stop
    if RULE == "boxed":
        active, bare, at, byte = find_box(
            token_ptr, start, stop, blob_ptr, offset_ptr, hint_ptr, vocab, active
        )
    if RULE == "tag":
        active, at, byte, end_token, end_byte = find_tag(
            token_ptr, start, mark + 1, blob_ptr, offset_ptr, hint_ptr, vocab, active
        )
    if RULE == "last_number":
        length, at, byte, before, before_token, before_byte = find_number(
            token_ptr, start, mark + 1, blob_ptr, offset_ptr, hint_ptr, vocab, active
        )
        active = active & (length > 0)
        short = length <= MAX
        at = tl.where(short & before, before_token, at)
        byte = tl.where(short & before, before_byte, byte)
        window = tl.where(short, length + before.to(tl.int32) + 1, length)
    size, kept = tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.int32)
    h = tl.full((LANES,), OWN_BASIS, tl.int64)
    kept_h = h
    depth = tl.full((LANES,), 1, tl.int32)
    escaped = active != active
    pending = tl.full(
        (LANES,), -1, tl.int32
    )  # of a bare answer: the byte that is not yet known to be part of it
    count = tl.zeros((LANES,), tl.int32)
    running = active
    first, length = tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.int32)
    loaded = active != active
    while tl.max(running.to(tl.int32), 0) > 0:
        move = running & (~loaded | (byte >= length))
        ahead = move & loaded
        at = tl.where(ahead, at + 1, at)
        byte = tl.where(ahead, 0, byte)
        loaded = loaded | move
        over = running & ((at >= stop) | ((at == end_token) & (byte >= end_byte) & (RULE == "tag")))
        new_first, new_length, read = token_bytes(
            token_ptr, at, offset_ptr, hint_ptr, vocab, move & ~over
        )
        first = tl.where(move, new_first, first)
        length = tl.where(move, new_length, length)
        reads = running & ~over & (byte < length)
        c = tl.load(blob_ptr + first + byte, mask=reads, other=0).to(tl.int32)
        byte = tl.where(reads, byte + 1, byte)
        out = tl.where(reads, c, -1)
        if RULE == "boxed":
            opens = reads & ~escaped & (c == 123)
            closes = reads & ~escaped & (c == 125)
            depth = tl.where(bare, 1, depth + opens.to(tl.int32) - closes.to(tl.int32))
            ends = (c <= 32) | ((c == 36) & ~escaped) | (((c == 41) | (c == 93)) & escaped)
            over = over | (reads & tl.where(bare, ends, depth == 0))
            # A backslash before a space, a closing bracket or the end of the text is no part of a bare answer.
            out = tl.where(over, -1, out)
            drop = bare & over & escaped
            fits = tl.where(bare, tl.where(drop, -1, pending), out)
            pending = tl.where(bare & (reads | over), tl.where(over, -1, c), pending)
            out = tl.where(bare & ~reads & ~over, -1, fits)
            escaped = reads & ~escaped & (c == 92) | (escaped & ~reads)
        if RULE == "last_number":
            count = tl.where(reads, count + 1, count)
            over = over | (reads & (count >= window))
        writes = running & (out >= 0) & ((out > 32) | (size > 0) | (RULE == "last_number"))
        tl.store(raw + size, out.to(tl.uint8), mask=writes & (size < ROW))
        size = tl.where(writes, size + 1, size)
        h = tl.where(writes, (h ^ out) * PRIME, h)
        trimmed = bare & ((out == 46) | (out == 44) | (out == 59) | (out == 58))
        keeps = writes & ((out > 32) & ~trimmed | (RULE == "last_number"))
        kept = tl.where(keeps, size, kept)
        kept_h = tl.where(keeps, h, kept_h)
        running = running & ~over
    if RULE == "last_number":
        tl.debug_barrier()  # what a lane reads another thread may have written
        searched = active & short
        _, _, place, found = walk(
            table_ptr, header_ptr, SEARCH, raw, raw, power_ptr, size, byte * 0, searched
        )
        kept = tl.where(searched, found, kept)
        i = tl.zeros((LANES,), tl.int32)
        while tl.max((searched & (i < found)).to(tl.int32), 0) > 0:
            copies = searched & (i < found)
            c = tl.load(raw + place + i, mask=copies, other=0)
            tl.store(raw + i, c, mask=copies)
            i += 1
    tl.store(size_ptr + lane, tl.where(active, kept, 0), mask=lane < rollouts)
    tl.store(hash_ptr + lane, kept_h, mask=lane < rollouts)


# ---- its form ----


@triton.jit
def walk(table_ptr, header_ptr, stage, source, target, power_ptr, size, before, active):
    """Stage.run for lanes with `size` bytes at `source`: size of the output at `target` (-1: Unfit), last state.

    before: last state of the stage before. The stage SEARCH writes nothing; place and size of the last number found.
    """
    header = header_ptr + stage * HEADER
    classes, following, width = tl.load(header), tl.load(header + 1), tl.load(header + 2)
    accepts, context, acts = tl.load(header + 3), tl.load(header + 4), tl.load(header + 5)
    kinds, close, rows = tl.load(header + 6), tl.load(header + 7), tl.load(header + 8)
    zero = size * 0
    state = tl.load(table_ptr + tl.load(header + 9) + before, mask=active, other=0)
    stack = zero.to(tl.int64) + 1
    at, read, best, length, out = zero, zero, zero, zero, zero  # read: bytes of the match so far
    node = zero + 1  # of the automaton
    text, text_left, body, body_at, body_end, after, after_left = (
        zero,
        zero,
        zero,
        zero,
        zero,
        zero,
        zero,
    )
    place, found = zero, zero
    fit = active
    running = active
    number = active != active  # it waits for its number
    while tl.max(running.to(tl.int32), 0) > 0:
        while tl.max((running & ~number).to(tl.int32), 0) > 0:
            emits = running & ~number & ((text_left > 0) | (body_at < body_end) | (after_left > 0))
            scans = running & ~number & ~emits
            # One more symbol of the match.
            inside = scans & (at + read < size)
            c = tl.load(source + at + read, mask=inside, other=0).to(tl.int32)
            symbol = tl.load(table_ptr + classes + tl.where(inside, c, END), mask=scans, other=0)
            possible = scans & (at + read <= size)
            new_node = tl.load(
                table_ptr + following + node * width + symbol, mask=possible, other=0
            )
            node = tl.where(scans, new_node, node)
            read = tl.where(scans, read + 1, read)
            accepted = tl.load(table_ptr + accepts + node, mask=scans & (node > 0), other=-1)
            best = tl.where(accepted >= 0, accepted, best)
            length = tl.where(accepted >= 0, read, length)
            # Or its end.
            ends = scans & (node == 0)
            closes = ends & (best == close)
            opened = (stack & 3).to(tl.int32)
            fit = fit & ~(closes & (stack == 1))
            kind = tl.where(closes & (opened > 0), kinds - 3 + opened, best)
            stack = tl.where(closes, stack >> 2, stack)
            row = tl.load(table_ptr + acts + state * kinds + kind, mask=ends & fit, other=0)
            act = table_ptr + rows + row * FIELDS
            state = tl.load(act, mask=ends, other=state)
            body = tl.load(act + 1, mask=ends, other=body)
            text = tl.load(act + 2, mask=ends, other=text)
            text_left = tl.load(act + 3, mask=ends, other=text_left)
            after = tl.load(act + 4, mask=ends, other=after)
            after_left = tl.load(act + 5, mask=ends, other=after_left)
            take = tl.load(act + 6, mask=ends, other=0)
            push = tl.load(act + 7, mask=ends, other=-1)
            take = tl.where(
                take > 0, take, length - tl.load(table_ptr + context + best, mask=ends, other=0)
            )
            fit = fit & ~((push >= 0) & ((stack >> TOO_DEEP) > 0))
            stack = tl.where(push >= 0, (stack << 2) | push, stack)
            body_at = tl.where(ends, at, body_at)
            body_end = tl.where(
                ends, tl.where(body == DROP, at, tl.minimum(at + take, size)), body_end
            )
            if stage == SEARCH:
                place = tl.where(ends & (body == NUMBER), body_at, place)
                found = tl.where(ends & (body == NUMBER), body_end - body_at, found)
                body_at = body_end
            number = number | (ends & (body == NUMBER) & (body_at < body_end))
            at = tl.where(ends, at + take, at)
            read = tl.where(ends, 0, read)
            node = tl.where(ends, 1, node)
            # Or one byte of what it becomes.
            before_body = emits & (text_left > 0)
            of_body = emits & ~before_body & (body_at < body_end)
            after_body = emits & ~before_body & ~of_body
            word = tl.load(
                table_ptr + tl.where(before_body, text, after),
                mask=before_body | after_body,
                other=0,
            )
            c = tl.load(source + body_at, mask=of_body, other=0).to(tl.int32)
            capital = (c >= 65) & (c <= 90)
            writes = emits & ~(
                of_body & (body == ALNUM) & ~(is_letter(c) | ((c >= 48) & (c <= 57)))
            )
            c = tl.where(of_body, tl.where(capital & (body == LOWER), c + 32, c), word)
            tl.store(target + out, c.to(tl.uint8), mask=writes & (out < MAX))
            out = tl.where(writes, out + 1, out)
            fit = fit & (out <= MAX)
            text += before_body.to(tl.int32)
            text_left -= before_body.to(tl.int32)
            body_at += of_body.to(tl.int32)
            after += after_body.to(tl.int32)
            after_left -= after_body.to(tl.int32)
            done = (at > size) & (text_left == 0) & (body_at >= body_end) & (after_left == 0)
            running = running & fit & ~done
        number = number & running
        if tl.max(number.to(tl.int32), 0) > 0:
            good, negative, n, d = rational(table_ptr, power_ptr, source, body_at, body_end, number)
            good = good & number
            out = write_byte(target, out, 45, good & negative)
            out = write_digits(target, out, n, good)
            out = write_byte(target, out, 47, good & (d > 1))
            out = write_digits(target, out, d, good & (d > 1))
            fit = fit & (out <= MAX)
            body_at = tl.where(good, body_end, body_at)
            number = number != number
            running = running & fit & ~((at > size) & (body_at >= body_end))
    return tl.where(fit & (stack == 1), out, -1), state, place, found


@triton.jit
def lowest_terms(n, d):
    a, b = n, d
    while tl.max(b, 0) > 0:
        rest = a % tl.maximum(b, 1)
        a = tl.where(b > 0, b, a)
        b = tl.where(b > 0, rest, 0)
    a = tl.maximum(a, 1)
    return n // a, d // a


@triton.jit
def rational(table_ptr, power_ptr, source, start, end, active):
    """answer_form.rational of the bytes from start to end: good, negative, numerator, denominator."""
    zero = start * 0
    whole, n, shift = zero.to(tl.int64), zero.to(tl.int64), zero
    d = whole + 1
    power, zeros, part = zero, zero, zero
    minus, sign = zero + 1, zero + 1
    good = active
    point = active != active
    mixed = active != active
    at = start
    while tl.max((active & (at < end)).to(tl.int32), 0) > 0:
        reads = active & (at < end)
        c = tl.load(source + at, mask=reads, other=0).to(tl.int32)
        meaning = tl.load(table_ptr + c, mask=reads, other=0)
        at += 1
        digit = meaning == DIGIT
        of_power = part == POWER_OF_TEN
        power = tl.where(digit & of_power, tl.minimum(10 * power + c - 48, 9999), power)
        counts = digit & (part <= DENOMINATOR)
        zeros += counts.to(tl.int32)
        counts = counts & ((c > 48) | ~point)
        scale = tl.load(power_ptr + tl.minimum(zeros, 18), mask=counts, other=1)
        value = tl.where(part == DENOMINATOR, d, n)
        good = good & ~(counts & (value > (TOP - (c - 48).to(tl.int64)) // scale))
        value = tl.where(good, value, 0) * scale + c - 48
        n = tl.where(counts & (part == NUMERATOR), value, n)
        d = tl.where(counts & (part == DENOMINATOR), value, d)
        shift += tl.where(counts & point, tl.where(part == DENOMINATOR, zeros, -zeros), 0)
        zeros = tl.where(counts, 0, zeros)
        point = point | (meaning == POINT)
        minus = tl.where((meaning == MINUS) & of_power, -1, minus)
        sign = tl.where((meaning == MINUS) & ~of_power, -sign, sign)
        over = (meaning == OVER) | ((meaning == BRACE) & (part == NUMERATOR))
        mixes = meaning == MIXED
        whole = tl.where(mixes, n, whole)
        mixed = tl.where(mixes, n > 0, mixed)
        n = tl.where(mixes, 0, n)
        d = tl.where(over, 0, d)
        point = point & ~over & ~mixes
        zeros = tl.where(over | mixes, 0, zeros)
        n = tl.where((meaning == POWER) & (part == NUMERATOR), 1, n)
        part = tl.where(
            (meaning == POWER) | ((meaning == EXPONENT) & (part == NUMERATOR)), POWER_OF_TEN, part
        )
        part = tl.where(meaning == TIMES, TEN, tl.where(over, DENOMINATOR, part))
    good = good & (d > 0) & ~(mixed & (n >= d))
    n, d = lowest_terms(tl.where(good, n, 0), tl.where(good, d, 1))
    shift += minus * power
    scale = tl.load(power_ptr + tl.minimum(tl.abs(shift), 18))
    scaled = tl.where(shift > 0, n, d)
    good = good & ((n == 0) | ((tl.abs(shift) <= 18) & (scaled <= TOP // scale)))
    n = tl.where(good & (shift > 0), n * scale, n)
    d = tl.where(good & (shift <= 0) & (n > 0), d * scale, d)
    n, d = lowest_terms(n, d)
    good = good & (whole <= (TOP - n) // d)
    n += tl.where(good, whole, 0) * d
    return good, (sign < 0) & (n > 0), n, d


@triton.jit
def write_digits(target, out, value, writes):
    """Write value >= 0 in decimal; how much is written after that."""
    unit = value * 0 + (TOP + 1) // 10
    begun = writes != writes
    while tl.max(unit, 0) > 0:
        digit = (value // tl.maximum(unit, 1)) % 10
        begun = writes & (begun | (digit > 0) | (unit == 1))
        out = write_byte(target, out, 48 + digit, begun)
        unit = unit // 10
    return out


@triton.jit
def write_byte(target, out, c, writes):
    tl.store(target + out, (out * 0 + c).to(tl.uint8), mask=writes & (out < MAX))
    return out + writes.to(tl.int32)


@triton.jit
def form_kernel(
    raw_ptr,
    size_ptr,
    hash_ptr,
    table_ptr,
    header_ptr,
    power_ptr,
    buffer_ptr,
    key_ptr,
    rollouts,
    LANES: tl.constexpr,
):
    """key [R] of the answers in raw [R, ROW]; buffer [2, R, ROW]."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    active = lane < rollouts
    size = tl.load(size_ptr + lane, mask=active, other=0)
    row = lane.to(tl.int64) * ROW
    fit = active & (size > 0) & (size <= MAX)
    n = tl.where(fit, size, 0)
    state = n * 0
    source, target, spare = (
        raw_ptr + row,
        buffer_ptr + row,
        buffer_ptr + (row * 0 + rollouts) * ROW + row,
    )
    empty = active & (size == 0)
    for stage in range(4):
        n, new_state, _, _ = walk(
            table_ptr, header_ptr, stage, source, target, power_ptr, n, state, fit
        )
        state = tl.where(fit, new_state, 0)
        fit = fit & (n >= 0)
        empty = empty | (fit & (stage == 1) & (n == 0))
        tl.debug_barrier()  # what a lane reads in the next stage another thread may have written
        source, target, spare = target, spare, target
    h = tl.full((LANES,), BASIS, tl.int64)
    i = n * 0
    while tl.max((fit & (i < n)).to(tl.int32), 0) > 0:
        reads = fit & (i < n)
        c = tl.load(source + i, mask=reads, other=0).to(tl.int64)
        h = tl.where(reads, (h ^ c) * PRIME, h)
        i += 1
    h = tl.where(fit & (n > 0), h, tl.load(hash_ptr + lane, mask=active, other=0))
    h = (h ^ ((h >> 33) & 0x7FFFFFFF)) * MIX_1
    h = (h ^ ((h >> 33) & 0x7FFFFFFF)) * MIX_2
    h = h ^ ((h >> 33) & 0x7FFFFFFF)
    h = tl.where(h == 0, 1, h)
    tl.store(key_ptr + lane, tl.where(empty, 0, h), mask=active)


def answer_keys(
    tokens: Tensor, cu_seqlens: Tensor, blob: Tensor, offsets: Tensor, hints: Tensor, rule: str
) -> Tensor:
    """Keys [R] int64 of the answers of packed completions. blob, offsets, hints: see AnswerReader."""
    rollouts, device = len(cu_seqlens) - 1, tokens.device
    keys = torch.empty(rollouts, dtype=torch.int64, device=device)
    if rollouts == 0:
        return keys
    tokens, cu_seqlens, programs = (
        tokens.contiguous(),
        cu_seqlens.contiguous(),
        (triton.cdiv(rollouts, LANES),),
    )
    marks, hashes = torch.empty_like(keys), torch.empty_like(keys)
    sizes = torch.empty(rollouts, dtype=torch.int32, device=device)
    raw, buffer = (
        torch.empty(count, rollouts, ROW.value, dtype=torch.uint8, device=device)
        for count in (1, 2)
    )
    table, headers, powers = _tables(device)
    marks_kernel[(rollouts,)](
        tokens,
        cu_seqlens,
        hints,
        marks,
        len(hints),
        BLOCK=MARK_BLOCK,
        num_warps=MARK_WARPS,
        **LAUNCH_OPTIONS,
    )
    find_kernel[programs](
        tokens,
        cu_seqlens,
        marks,
        blob,
        offsets,
        hints,
        table,
        headers,
        powers,
        raw,
        sizes,
        hashes,
        rollouts,
        len(hints),
        RULE=rule,
        LANES=LANES,
        num_warps=1,
        **LAUNCH_OPTIONS,
    )
    form_kernel[programs](
        raw,
        sizes,
        hashes,
        table,
        headers,
        powers,
        buffer,
        keys,
        rollouts,
        LANES=LANES,
        num_warps=1,
        **LAUNCH_OPTIONS,
    )
    return keys
