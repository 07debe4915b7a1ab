"""Arithmetic, logic and shifts: instructions that compute each thread's result from its operands.

Functions that a GPU only approximates get an error here as well. It depends on the input's bits
alone. It reaches the largest error that the PTX manual (ISA 9, floating point instructions) allows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptx.blocks import Mask, Unit
from ptx.memory import UINTS
from ptx.operands import Step, bytes_of, dtype_of, is_float, reader, writer
from ptx.program import Instruction

Function = Callable[..., NDArray]
LEAST_NORMAL = np.float32(2.0**-126)
ULP = 2.0**-23  # of 1, in fp32


def _approximated(exact: NDArray, source: NDArray, error: float) -> NDArray:
    """exact [fp64] with relative errors of up to `error`, in fp32. No error where the source is 0.

    source: fp32 whose bits choose the errors.
    """
    hashed = (source.view(np.uint32) * np.uint32(2654435761)) >> np.uint32(8)
    part = hashed.astype(np.float64) / 2.0**23 - 1
    return (exact * (1 + error * np.where(source == 0, 0.0, part))).astype(np.float32)


def _ex2(x: NDArray) -> NDArray:
    return _approximated(np.exp2(x.astype(np.float64)), x, 2.0**-22)


def _lg2(x: NDArray) -> NDArray:
    """Its error is absolute around 1."""
    exact = np.log2(x.astype(np.float64))
    size = np.where((x > 0.5) & (x < 2), 1.0, np.abs(exact))
    noise = _approximated(np.ones_like(exact), x, 2.0**-22).astype(np.float64) - 1
    return (exact + size * noise).astype(np.float32)


def _divide_approximately(x: NDArray, y: NDArray) -> NDArray:
    return _approximated(x.astype(np.float64) / y.astype(np.float64), x, 2 * ULP)


def _reciprocal(x: NDArray) -> NDArray:
    return _approximated(1 / x.astype(np.float64), x, ULP)


def _fused(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
    """x y + z, rounded once: in a wider type, whose own rounding is 2^-29 (fp64: 2^-11) of it."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    return (x.astype(wide) * y.astype(wide) + z.astype(wide)).astype(x.dtype)


# By name and what stands between name and type, without rn and ftz.
FLOAT: dict[tuple[str, ...], Function] = {
    ("add",): np.add,
    ("sub",): np.subtract,
    ("mul",): np.multiply,
    ("fma",): _fused,
    ("neg",): np.negative,
    ("abs",): np.abs,
    ("min",): np.fmin,
    ("max",): np.fmax,
    ("min", "NaN"): np.minimum,
    ("max", "NaN"): np.maximum,
    ("div",): np.divide,
    ("sqrt",): np.sqrt,
}
APPROXIMATE: dict[tuple[str, ...], Function] = {
    ("div", "full"): _divide_approximately,
    ("div", "approx"): _divide_approximately,
    ("rcp", "approx"): _reciprocal,
    ("ex2", "approx"): _ex2,
    ("lg2", "approx"): _lg2,
}


def _nonzero(y: NDArray) -> NDArray:
    return np.where(y == 0, y.dtype.type(1), y)  # x / 0 is undefined


def _quotient(x: NDArray, y: NDArray) -> NDArray:
    """Towards zero."""
    y = _nonzero(y)
    floor = x // y
    return floor + ((floor * y != x) & ((x < 0) != (y < 0))).astype(x.dtype)


def _high_product(x: NDArray, y: NDArray) -> NDArray:
    bits = 8 * x.dtype.itemsize
    return ((x.astype(object) * y.astype(object)) >> bits).astype(x.dtype)


def _shift_left(x: NDArray, count: NDArray) -> NDArray:
    bits = 8 * x.dtype.itemsize
    shifted = x << np.minimum(count, bits - 1).astype(x.dtype)
    return np.where(count >= bits, x.dtype.type(0), shifted)


def _shift_right(x: NDArray, count: NDArray) -> NDArray:
    bits = 8 * x.dtype.itemsize
    shifted = x >> np.minimum(count, bits - 1).astype(x.dtype)
    if x.dtype.kind == "i":
        return shifted
    return np.where(count >= bits, x.dtype.type(0), shifted)


def _extract_bits(x: NDArray, first: NDArray, count: NDArray) -> NDArray:
    return _shift_right(x, first) & ~_shift_left(~x.dtype.type(0) + np.zeros_like(x), count)


INTEGER: dict[tuple[str, ...], Function] = {
    ("mov",): np.copy,
    ("add",): np.add,
    ("sub",): np.subtract,
    ("mul", "lo"): np.multiply,
    ("mul", "hi"): _high_product,
    ("mad", "lo"): lambda x, y, z: x * y + z,
    ("div",): _quotient,
    ("rem",): lambda x, y: np.fmod(x, _nonzero(y)),
    ("neg",): np.negative,
    ("abs",): np.abs,
    ("min",): np.minimum,
    ("max",): np.maximum,
    ("and",): np.bitwise_and,
    ("or",): np.bitwise_or,
    ("xor",): np.bitwise_xor,
    ("not",): np.bitwise_not,
    ("shl",): _shift_left,
    ("shr",): _shift_right,
    ("bfe",): _extract_bits,
}
PREDICATE: dict[tuple[str, ...], Function] = {
    (name,): INTEGER[(name,)] for name in ("mov", "and", "or", "xor", "not")
}
COUNTS = ("shl", "shr", "bfe")  # the operands after their first one are u32


def compute(instruction: Instruction) -> Step:
    """An instruction as `add.s32 %r1, %r2, 3`."""
    if "wide" in instruction.parts:
        return _wide_product(instruction)
    kind = instruction.type
    function = _function(instruction)
    read = []
    for place, operand in enumerate(instruction.operands[1:]):
        is_count = instruction.name in COUNTS and place > 0
        read.append(reader(instruction, operand, "u32" if is_count else kind))
    write = writer(instruction, instruction.operands[0])

    def step(unit: Unit, mask: Mask) -> None:
        write(unit, mask, function(*[operand(unit) for operand in read]))

    return step


def _function(instruction: Instruction) -> Function:
    kind = instruction.type
    modifiers = instruction.parts[:-1]
    if kind == "pred":
        table = PREDICATE
    elif kind == "f32":
        table = FLOAT | APPROXIMATE
    else:
        table = FLOAT if kind == "f64" else INTEGER
    if is_float(kind):
        key = tuple(part for part in modifiers if part not in ("rn", "ftz"))
        if key == ("mov",):
            return np.copy
    else:
        dtype_of(instruction, kind)
        key = modifiers
    if key not in table or kind in ("f16", "bf16"):
        raise instruction.unknown()
    function = table[key]
    return _flushed(function) if "ftz" in modifiers else function


def _flushed(function: Function) -> Function:
    """Subnormal operands and results are zeros of the same sign."""

    def flush(x: NDArray) -> NDArray:
        return np.where(np.abs(x) < LEAST_NORMAL, np.copysign(np.float32(0), x), x)

    return lambda *operands: flush(function(*map(flush, operands)))


def _wide_product(instruction: Instruction) -> Step:
    """mul.wide and mad.wide: the product has twice the operands' bits."""
    if instruction.parts[:2] not in (("mul", "wide"), ("mad", "wide")):
        raise instruction.unknown()
    kind = instruction.type
    wide = f"{kind[0]}{16 * bytes_of(instruction, kind)}"
    dtype = dtype_of(instruction, wide)
    target, *operands = instruction.operands
    x, y = [reader(instruction, operand, kind) for operand in operands[:2]]
    added = [reader(instruction, operand, wide) for operand in operands[2:]]
    write = writer(instruction, target)

    def step(unit: Unit, mask: Mask) -> None:
        product = np.multiply(x(unit).astype(dtype), y(unit).astype(dtype))
        write(unit, mask, sum((z(unit) for z in added), product))

    return step


def pack(instruction: Instruction) -> Step:
    """mov between a register and the registers in braces that are its parts, lowest first."""
    target, source = instruction.operands
    size = bytes_of(instruction, instruction.type)
    parts = target if target.startswith("{") else source
    names = [name.strip() for name in parts.strip("{} ").split(",")]
    bits = 8 * size // len(names)
    kind = f"b{bits}"
    if target.startswith("{"):
        read = reader(instruction, source, f"b{8 * size}")
        write = [writer(instruction, name) for name in names]

        def unpack_step(unit: Unit, mask: Mask) -> None:
            value = read(unit)
            for place, part in enumerate(write):
                shifted = np.right_shift(value, place * bits, dtype=value.dtype)
                part(unit, mask, shifted.astype(UINTS[bits // 8]))

        return unpack_step
    read_parts = [reader(instruction, name, kind) for name in names]
    write_whole = writer(instruction, target)

    def pack_step(unit: Unit, mask: Mask) -> None:
        value = np.zeros(unit.size, UINTS[size])
        for place, part in enumerate(read_parts):
            wide = part(unit).astype(value.dtype)
            value |= np.left_shift(wide, place * bits, dtype=value.dtype)
        write_whole(unit, mask, value)

    return pack_step


def move(instruction: Instruction) -> Step:
    has_braces = any(operand.startswith("{") for operand in instruction.operands)
    return pack(instruction) if has_braces else compute(instruction)
