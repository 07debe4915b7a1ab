"""Triton twin of Stage.run: one stage of the canonical form, from its tables (kernel/tables.py)."""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from typing import NamedTuple

import triton
import triton.language as tl

from srt_kernels.answers.kernel import constants as const
from srt_kernels.answers.kernel.lanes import any_lane, is_digit, is_letter
from srt_kernels.answers.kernel.rational import rational
from srt_kernels.answers.kernel.tables import ActionRow, Header

HEADER_SIZE = tl.constexpr(len(Header._fields))
ROW_SIZE = tl.constexpr(len(ActionRow._fields))


class Tables(NamedTuple):
    """Pointers to kernel.tables.StageTables."""

    words: tl.tensor
    headers: tl.tensor
    powers: tl.tensor


class Match(NamedTuple):
    """The match that a lane is looking for."""

    start: tl.tensor
    read: tl.tensor  # symbols that were read
    node: tl.tensor  # state of the automaton
    pattern: tl.tensor  # of the longest match so far
    length: tl.tensor  # of the longest match so far, in symbols


class Output(NamedTuple):
    """What a lane has yet to write: bytes of a prefix, of the source, and of a suffix."""

    prefix: tl.tensor
    prefix_left: tl.tensor
    body: tl.tensor  # what becomes of the bytes of the source
    body_start: tl.tensor
    body_end: tl.tensor
    suffix: tl.tensor
    suffix_left: tl.tensor


@triton.jit
def walk(tables, stage, source, target, size, previous_state, active):
    """Runs a stage over the first `size` bytes at `source` and writes its output to `target`.

    previous_state: the last state of the previous stage. Returns the size of the output (-1: no
    canonical form), and the last state.
    """
    header = load_header(tables, stage)
    zero = size * 0
    state = tl.load(tables.words + header.first_states + previous_state, mask=active, other=0)
    stack = zero.to(tl.int64) + 1
    match = Match(zero, zero, zero + const.START, zero, zero)
    output = Output(zero, zero, zero, zero, zero, zero, zero)
    written = zero
    fits = active
    running = active
    waits = active != active  # for its number: the lanes of a program reduce theirs together
    while any_lane(running):
        while any_lane(running & ~waits):
            pending = has_output(output)
            emits = running & ~waits & pending
            scans = running & ~waits & ~pending
            match = scan(tables, header, source, size, match, scans)
            ends = scans & (match.node == const.DEAD)
            state, stack, output, match, fits = end_match(
                tables, header, state, stack, output, match, size, ends, fits
            )
            is_number = ends & (output.body == const.NUMBER)
            waits = waits | (is_number & has_body(output))
            output, written = emit(tables, source, target, output, written, emits)
            fits = fits & (written <= const.MAX_BYTES)
            running = running & fits & ~((match.start > size) & ~has_output(output))
        waits = waits & running
        if any_lane(waits):
            written, is_written = write_number(tables, source, target, output, written, waits)
            output = skip_body(output, is_written)
            fits = fits & (written <= const.MAX_BYTES)
            running = running & fits & ~((match.start > size) & ~has_body(output))
            waits = waits != waits
    return tl.where(fits & (stack == 1), written, -1), state


@triton.jit
def load_header(tables, stage):
    """The Header of a stage."""
    header = tables.headers + stage * HEADER_SIZE
    return Header(
        classes=tl.load(header),
        transitions=tl.load(header + 1),
        width=tl.load(header + 2),
        accepts=tl.load(header + 3),
        lookahead=tl.load(header + 4),
        actions=tl.load(header + 5),
        kinds=tl.load(header + 6),
        close=tl.load(header + 7),
        rows=tl.load(header + 8),
        first_states=tl.load(header + 9),
    )


@triton.jit
def scan(tables, header, source, size, match, scans):
    """Reads one more symbol of the match. Its node is DEAD where no pattern matches any longer."""
    at = match.start + match.read
    inside = scans & (at < size)
    char = tl.load(source + at, mask=inside, other=0).to(tl.int32)
    symbol = tl.where(inside, char, const.END)
    symbol_class = tl.load(tables.words + header.classes + symbol, mask=scans, other=0)
    place = tables.words + header.transitions + match.node * header.width + symbol_class
    next_node = tl.load(place, mask=scans & (at <= size), other=const.DEAD)
    node = tl.where(scans, next_node, match.node)
    read = tl.where(scans, match.read + 1, match.read)
    alive = scans & (node > const.DEAD)
    accepted = tl.load(tables.words + header.accepts + node, mask=alive, other=-1)
    pattern = tl.where(accepted >= 0, accepted, match.pattern)
    length = tl.where(accepted >= 0, read, match.length)
    return Match(match.start, read, node, pattern, length)


@triton.jit
def end_match(tables, header, state, stack, output, match, size, ends, fits):
    """Where a match ends: loads its action, and begins the next match after its bytes.

    Returns the next state, stack, output and match, and which lanes still have a form.
    """
    closes = ends & (match.pattern == header.close)
    opened = (stack & 3).to(tl.int32)
    fits = fits & ~(closes & (stack == 1))
    # The last two kinds are the other CLOSE_KINDS.
    kind = tl.where(closes & (opened > 0), header.kinds - 3 + opened, match.pattern)
    stack = tl.where(closes, stack >> 2, stack)
    actions = tables.words + header.actions
    row = tl.load(actions + state * header.kinds + kind, mask=ends & fits, other=0)
    action = tables.words + header.rows + row * ROW_SIZE  # an ActionRow
    state = tl.load(action, mask=ends, other=state)
    body = tl.load(action + 1, mask=ends, other=output.body)
    prefix = tl.load(action + 2, mask=ends, other=output.prefix)
    prefix_left = tl.load(action + 3, mask=ends, other=output.prefix_left)
    suffix = tl.load(action + 4, mask=ends, other=output.suffix)
    suffix_left = tl.load(action + 5, mask=ends, other=output.suffix_left)
    take = tl.load(action + 6, mask=ends, other=0)
    push = tl.load(action + 7, mask=ends, other=-1)
    lookahead = tl.load(tables.words + header.lookahead + match.pattern, mask=ends, other=0)
    take = tl.where(take > 0, take, match.length - lookahead)
    fits = fits & ~((push >= 0) & ((stack >> const.DEEPEST) > 0))
    stack = tl.where(push >= 0, (stack << 2) | push, stack)
    taken = tl.minimum(match.start + take, size)
    body_start = tl.where(ends, match.start, output.body_start)
    body_end = tl.where(body == const.DROP, match.start, taken)
    body_end = tl.where(ends, body_end, output.body_end)
    start = tl.where(ends, match.start + take, match.start)
    read = tl.where(ends, 0, match.read)
    node = tl.where(ends, const.START, match.node)
    output = Output(prefix, prefix_left, body, body_start, body_end, suffix, suffix_left)
    return state, stack, output, Match(start, read, node, match.pattern, match.length), fits


@triton.jit
def emit(tables, source, target, output, written, emits):
    """Writes one byte. Returns what is left of the output, and the number of written bytes."""
    of_prefix = emits & (output.prefix_left > 0)
    of_body = emits & ~of_prefix & has_body(output)
    of_suffix = emits & ~of_prefix & ~of_body
    place = tl.where(of_prefix, output.prefix, output.suffix)
    word = tl.load(tables.words + place, mask=of_prefix | of_suffix, other=0)
    char = tl.load(source + output.body_start, mask=of_body, other=0).to(tl.int32)
    is_capital = (char >= const.CAPITAL_A) & (char <= const.CAPITAL_Z)
    is_dropped = (output.body == const.ALNUM) & ~(is_letter(char) | is_digit(char))
    lowers = is_capital & (output.body == const.LOWER)
    char = tl.where(lowers, char + const.CASE_BIT, char)
    char = tl.where(of_body, char, word)
    written = write_byte(target, written, char, emits & ~(of_body & is_dropped))
    output = Output(
        output.prefix + of_prefix.to(tl.int32),
        output.prefix_left - of_prefix.to(tl.int32),
        output.body,
        output.body_start + of_body.to(tl.int32),
        output.body_end,
        output.suffix + of_suffix.to(tl.int32),
        output.suffix_left - of_suffix.to(tl.int32),
    )
    return output, written


@triton.jit
def has_output(output):
    return (output.prefix_left > 0) | has_body(output) | (output.suffix_left > 0)


@triton.jit
def has_body(output):
    return output.body_start < output.body_end


@triton.jit
def skip_body(output, skips):
    return Output(
        output.prefix,
        output.prefix_left,
        output.body,
        tl.where(skips, output.body_end, output.body_start),
        output.body_end,
        output.suffix,
        output.suffix_left,
    )


@triton.jit
def write_number(tables, source, target, output, written, writes):
    """Writes the lowest terms of the number that is the body of the output.

    Returns the number of written bytes, and which lanes wrote. The others have no such terms.
    """
    valid, negative, numerator, denominator = rational(
        tables, source, output.body_start, output.body_end, writes
    )
    valid = valid & writes
    has_denominator = valid & (denominator > 1)
    written = write_byte(target, written, const.HYPHEN, valid & negative)
    written = write_digits(target, written, numerator, valid)
    written = write_byte(target, written, const.SLASH, has_denominator)
    written = write_digits(target, written, denominator, has_denominator)
    return written, valid


@triton.jit
def write_digits(target, written, value, writes):
    """Writes value >= 0 in decimal. Returns the number of written bytes after that."""
    unit = value * 0 + (const.TOP + 1) // 10
    begun = writes != writes
    while tl.max(unit, 0) > 0:
        digit = (value // tl.maximum(unit, 1)) % 10
        begun = writes & (begun | (digit > 0) | (unit == 1))
        written = write_byte(target, written, const.ZERO + digit, begun)
        unit = unit // 10
    return written


@triton.jit
def write_byte(target, written, char, writes):
    """Writes a byte, of the first MAX_BYTES. Returns the number of written bytes after that."""
    byte = (written * 0 + char).to(tl.uint8)
    tl.store(target + written, byte, mask=writes & (written < const.MAX_BYTES))
    return written + writes.to(tl.int32)
