"""Triton twin of answers/rational.py: the numbers of all lanes of a program, byte by byte."""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from typing import NamedTuple

import triton
import triton.language as tl

from srt_kernels.answers.kernel import constants as const
from srt_kernels.answers.kernel.lanes import any_lane


class Number(NamedTuple):
    """(whole + numerator / denominator * 10^shift), with a minus sign where `negative`."""

    whole: tl.tensor  # int64
    numerator: tl.tensor  # int64
    denominator: tl.tensor  # int64
    shift: tl.tensor
    negative: tl.tensor


@triton.jit
def rational(tables, source, start, end, active):
    """The number in the bytes from `start` to `end` of `source`, in lowest terms.

    Returns which lanes have a value below LIMIT, and its sign (true: negative), numerator and
    denominator.
    """
    number, valid = parse_number(tables, source, start, end, active)
    numerator, denominator = reduce(
        tl.where(valid, number.numerator, 0), tl.where(valid, number.denominator, 1)
    )
    distance = tl.abs(number.shift)
    scale = tl.load(tables.powers + tl.minimum(distance, const.MAX_SHIFT))
    grows = number.shift > 0
    scaled = tl.where(grows, numerator, denominator)
    fits = (distance <= const.MAX_SHIFT) & (scaled <= const.TOP // scale)
    valid = valid & ((numerator == 0) | fits)
    numerator = tl.where(valid & grows, numerator * scale, numerator)
    shrinks = valid & ~grows & (numerator > 0)
    denominator = tl.where(shrinks, denominator * scale, denominator)
    numerator, denominator = reduce(numerator, denominator)
    valid = valid & (number.whole <= (const.TOP - numerator) // denominator)
    numerator += tl.where(valid, number.whole, 0) * denominator
    return valid, number.negative & (numerator > 0), numerator, denominator


@triton.jit
def parse_number(tables, source, start, end, active):
    """Returns the Number, and which lanes have one."""
    zero = start * 0
    whole = zero.to(tl.int64)
    numerator = whole
    denominator = whole + 1
    shift = zero
    exponent = zero
    zeros = zero  # digits that are not yet multiplied in: zeros after the point
    part = zero + const.NUMERATOR
    sign = zero + 1
    exponent_sign = zero + 1
    valid = active
    after_point = active != active
    is_mixed = active != active
    at = start
    while any_lane(active & (at < end)):
        reads = active & (at < end)
        char = tl.load(source + at, mask=reads, other=0).to(tl.int32)
        meaning = tl.load(tables.words + char, mask=reads, other=0)
        at += 1
        digit = char - const.ZERO
        is_digit = meaning == const.DIGIT
        in_exponent = part == const.POWER_OF_TEN
        in_denominator = part == const.DENOMINATOR
        grown = tl.minimum(10 * exponent + digit, const.MAX_EXPONENT)
        exponent = tl.where(is_digit & in_exponent, grown, exponent)
        # Zeros after the point count only where another digit follows them.
        counts = is_digit & (part <= const.DENOMINATOR)
        zeros += counts.to(tl.int32)
        counts = counts & ((digit > 0) | ~after_point)
        scale = tl.load(tables.powers + tl.minimum(zeros, const.MAX_SHIFT), mask=counts, other=1)
        value = tl.where(in_denominator, denominator, numerator)
        valid = valid & ~(counts & (value > (const.TOP - digit.to(tl.int64)) // scale))
        value = tl.where(valid, value, 0) * scale + digit
        numerator = tl.where(counts & (part == const.NUMERATOR), value, numerator)
        denominator = tl.where(counts & in_denominator, value, denominator)
        shift += tl.where(counts & after_point, tl.where(in_denominator, zeros, -zeros), 0)
        zeros = tl.where(counts, 0, zeros)
        after_point = after_point | (meaning == const.POINT)
        # The signs.
        minus = meaning == const.MINUS
        exponent_sign = tl.where(minus & in_exponent, -1, exponent_sign)
        sign = tl.where(minus & ~in_exponent, -sign, sign)
        # The next part.
        closes = (meaning == const.BRACE) & (part == const.NUMERATOR)
        over = (meaning == const.OVER) | closes
        mixes = meaning == const.MIXED
        whole = tl.where(mixes, numerator, whole)
        is_mixed = tl.where(mixes, numerator > 0, is_mixed)
        numerator = tl.where(mixes, 0, numerator)
        denominator = tl.where(over, 0, denominator)
        after_point = after_point & ~over & ~mixes
        zeros = tl.where(over | mixes, 0, zeros)
        power = meaning == const.POWER
        numerator = tl.where(power & (part == const.NUMERATOR), 1, numerator)
        power = power | ((meaning == const.EXPONENT) & (part == const.NUMERATOR))
        part = tl.where(power, const.POWER_OF_TEN, part)
        part = tl.where(over, const.DENOMINATOR, part)
        part = tl.where(meaning == const.TIMES, const.TEN, part)
    valid = valid & (denominator > 0) & ~(is_mixed & (numerator >= denominator))
    shift += exponent_sign * exponent
    return Number(whole, numerator, denominator, shift, sign < 0), valid


@triton.jit
def reduce(numerator, denominator):
    """Divides both by their greatest common divisor, by Euclid's algorithm."""
    divisor = numerator
    remainder = denominator
    while tl.max(remainder, 0) > 0:
        next_remainder = divisor % tl.maximum(remainder, 1)
        divisor = tl.where(remainder > 0, remainder, divisor)
        remainder = tl.where(remainder > 0, next_remainder, 0)
    divisor = tl.maximum(divisor, 1)
    return numerator // divisor, denominator // divisor
