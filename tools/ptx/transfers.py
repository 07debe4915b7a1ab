"""Loads, stores, cp.async and ldmatrix. Bounds and alignment of each access are checked."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptx import bulk_copies
from ptx.blocks import WARP, Mask, Unit
from ptx.memory import Memory
from ptx.operands import (
    Reader,
    Step,
    address,
    bytes_of,
    dtype_of,
    reader,
    readers,
    vector,
    writer,
    writers,
)
from ptx.program import Instruction
from ptx.warps import by_whole_units, check_whole_warps

CACHE_HINT = r"L[12]::\w+"


def load(instruction: Instruction) -> Step:
    """`ld.global.v4.b32 {...}, [%rd1 + 0]`, from global or shared memory or the parameters."""
    if instruction.parts[1] == "param":
        return _load_parameter(instruction)
    locate, size = _place(instruction, instruction.operands[1])
    write = writers(instruction, instruction.operands[0])
    dtype = dtype_of(instruction, instruction.type)

    def step(unit: Unit, mask: Mask) -> None:
        memory, addresses = locate(unit, mask, size * len(write))
        for place, part in enumerate(write):
            values = memory.load(addresses + place * size, size).view(dtype)
            if mask is None:
                part(unit, None, values)
            else:
                spread = np.zeros(unit.size, dtype)
                spread[mask] = values
                part(unit, mask, spread)

    return step


def _load_parameter(instruction: Instruction) -> Step:
    target, source = instruction.operands
    name = source.strip("[] ")
    dtype = dtype_of(instruction, instruction.type)
    write = writer(instruction, target)

    def step(unit: Unit, mask: Mask) -> None:
        bits = np.frombuffer(unit.blocks.parameters[name].tobytes(), dtype)[0]
        write(unit, mask, np.full(unit.size, bits))

    return step


def store(instruction: Instruction) -> Step:
    """`st.shared.v2.b32 [%r1], {...}`."""
    locate, size = _place(instruction, instruction.operands[0])
    read = readers(instruction, instruction.operands[1], f"b{8 * size}")

    def step(unit: Unit, mask: Mask) -> None:
        memory, addresses = locate(unit, mask, size * len(read))
        active = slice(None) if mask is None else mask
        for place, part in enumerate(read):
            memory.store(addresses + place * size, part(unit)[active], size)

    return step


Locate = Callable[[Unit, Mask, int], tuple[Memory, NDArray]]


def _place(instruction: Instruction, operand: str) -> tuple[Locate, int]:
    """A function that gives the memory and the checked addresses of a unit's active threads, and
    the bytes of an element.
    """
    space, *modifiers = instruction.parts[1:-1]
    target, source = instruction.operands[:2]
    count = len(vector(source if operand == target else target))
    for modifier in modifiers:
        if not re.fullmatch(rf"{CACHE_HINT}|v{count}", modifier):
            raise instruction.unknown()
    if space not in ("global", "shared"):
        raise instruction.unknown()
    at = address(instruction, operand)

    def locate(unit: Unit, mask: Mask, size: int) -> tuple[Memory, NDArray]:
        active = slice(None) if mask is None else mask
        addresses = at(unit)[active]
        memory = unit.blocks.memory if space == "global" else unit.blocks.shared
        memory.check(addresses, size, instruction.text)
        if space == "shared":
            addresses = addresses + unit.shared_base()[active]
        return memory, addresses

    return locate, bytes_of(instruction, instruction.type)


def copy(instruction: Instruction) -> Step:
    """cp.async: a copy from global to shared memory, of which it zeroes what lies beyond src-size.

    Global memory is read at once, shared memory written as the schedule says.
    """
    if instruction.parts[2] == "bulk":
        return bulk_copies.copy_tile(instruction)
    if instruction.parts[2] == "commit_group":
        return by_whole_units(instruction, lambda unit: unit.copies.commit())
    if instruction.parts[2] == "wait_group":
        most = int(instruction.operands[0])
        return by_whole_units(instruction, lambda unit: unit.copies.wait(most))
    if instruction.parts[2] not in ("ca", "cg") or instruction.parts[3:] != ("shared", "global"):
        raise instruction.unknown()
    to, source, size_text, *rest = instruction.operands
    size = int(size_text, 0)
    if size not in (4, 8, 16) or len(rest) != 1:
        raise instruction.unknown()
    target, origin = address(instruction, to), address(instruction, source)
    return _copy_step(instruction, target, origin, reader(instruction, rest[0], "u32"), size)


def _copy_step(
    instruction: Instruction, target: Reader, origin: Reader, source_size: Reader, size: int
) -> Step:
    word = min(size, 8)
    offsets = range(0, size, word)

    def step(unit: Unit, mask: Mask) -> None:
        active = slice(None) if mask is None else mask
        to, of, count = [read(unit)[active] for read in (target, origin, source_size)]
        shared = unit.blocks.shared
        shared.check(to, size, instruction.text)
        if not np.isin(count, (0, size)).all():
            raise instruction.unknown()
        is_copied = count > 0
        unit.blocks.memory.check(of[is_copied], size, instruction.text)
        data = [np.zeros(len(to), np.uint64) for _ in offsets]
        for offset, words in zip(offsets, data, strict=True):
            words[is_copied] = unit.blocks.memory.load(of[is_copied] + offset, word)
        to = to + unit.shared_base()[active]

        def write() -> None:
            for offset, words in zip(offsets, data, strict=True):
                shared.store(to + offset, words, word)

        unit.copies.issue(write)

    return step


def load_matrices(instruction: Instruction) -> Step:
    """ldmatrix: 8 x 8 matrices of 16-bit numbers.

    Lane 8 i + j has the address of row j of matrix i. Lane t gets elements 2 (t mod 4) and the next
    of row t / 4, of the transpose with `.trans`.
    """
    if instruction.parts[1:4] != ("sync", "aligned", "m8n8") or instruction.type != "b16":
        raise instruction.unknown()
    write = writers(instruction, instruction.operands[0])
    at = address(instruction, instruction.operands[1])
    is_transposed = "trans" in instruction.parts
    lane = np.arange(WARP)
    row, column = lane // 4, 2 * (lane % 4)

    def step(unit: Unit, mask: Mask) -> None:
        check_whole_warps(instruction, mask)
        addresses = at(unit)
        base = unit.shared_base()
        for number, part in enumerate(write):
            rows = slice(8 * number, 8 * number + 8)
            of_rows = addresses.reshape(-1, WARP)[:, rows]
            unit.blocks.shared.check(of_rows, 16, instruction.text)
            of_rows = of_rows + base.reshape(-1, WARP)[:, rows]
            elements = of_rows[:, :, None] + 2 * np.arange(8)
            matrix = unit.blocks.shared.load(elements, 2).astype(np.uint32)
            if is_transposed:
                matrix = matrix.swapaxes(1, 2)
            low, high = matrix[:, row, column], matrix[:, row, column + 1]
            part(unit, mask, (low | (high << np.uint32(16))).reshape(-1))

    return step
