"""mma.sync and wgmma: D = A B + C of 16-bit numbers, with sums in fp32.

A product of 16 terms is exact here, and rounded once when it is added. A tensor core may drop bits
on the way.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from ptx.blocks import WARP, Mask, Unit
from ptx.memory import Fault
from ptx.operands import (
    Step,
    bf16_to_float32,
    readers,
    writers,
)
from ptx.operands import reader as operand_reader
from ptx.program import Instruction
from ptx.warps import by_whole_units, check_whole_warps

LANE = np.arange(WARP)
ROW, COLUMN = LANE // 4, 2 * (LANE % 4)  # of a lane's first element in an 8 x 8 tile
# Rows and columns of a lane's four sums in a 16 x 8 tile.
SUMS = ((ROW, COLUMN), (ROW, COLUMN + 1), (ROW + 8, COLUMN), (ROW + 8, COLUMN + 1))
SWIZZLES = {1: 128, 2: 64, 3: 32}  # the mode of a descriptor -> bytes of a row


def _to_float64(bits: NDArray, kind: str) -> NDArray:
    floats = bf16_to_float32(bits) if kind == "bf16" else bits.view(np.float16)
    return floats.astype(np.float64)


def multiply(instruction: Instruction) -> Step:
    """mma.sync of m16n8k16. The manual has the lanes of each element."""
    known = ("sync", "aligned", "m16n8k16", "row", "col", "f32")
    kind = instruction.parts[-2]
    if instruction.parts[1:7] != known or kind not in ("bf16", "f16") or instruction.type != "f32":
        raise instruction.unknown()
    target, left, right, added = instruction.operands
    write = writers(instruction, target)
    read_left = readers(instruction, left, "b32")
    read_right = readers(instruction, right, "b32")
    read_added = readers(instruction, added, "f32")

    def step(unit: Unit, mask: Mask) -> None:
        check_whole_warps(instruction, mask)
        warps = unit.size // WARP
        a, b = np.zeros((warps, 16, 16)), np.zeros((warps, 16, 8))
        for (down, across), read in zip(((0, 0), (8, 0), (0, 8), (8, 8)), read_left, strict=True):
            for place, half in enumerate(_halves(read(unit), kind)):
                a[:, ROW + down, COLUMN + across + place] = half
        for down, read in zip((0, 8), read_right, strict=True):
            for place, half in enumerate(_halves(read(unit), kind)):
                b[:, COLUMN + down + place, ROW] = half
        product = a @ b
        for place, read, part in zip(SUMS, read_added, write, strict=True):
            old = read(unit).reshape(warps, WARP).astype(np.float64)
            part(unit, mask, (product[:, *place] + old).astype(np.float32).reshape(-1))

    return step


def _halves(registers: NDArray, kind: str) -> list[NDArray]:
    """[warps, 32] of the lower and the upper halves."""
    halves = registers.reshape(-1, WARP, 1).view(np.uint16)
    return [_to_float64(np.ascontiguousarray(halves[:, :, place]), kind) for place in (0, 1)]


def multiply_group(instruction: Instruction) -> Step:
    """wgmma: four warps multiply tiles of shared memory. Done when the schedule says so."""
    what = instruction.parts[1]
    if what == "fence":
        return lambda unit, mask: None
    if what == "commit_group":
        return by_whole_units(instruction, lambda unit: unit.products.commit())
    if what == "wait_group":
        most = int(instruction.operands[0])
        return by_whole_units(instruction, lambda unit: unit.products.wait(most))
    return _product_step(instruction)


def _product_step(instruction: Instruction) -> Step:
    """Both operands in shared memory, rows of K numbers in a swizzled layout."""
    pattern = r"wgmma mma_async sync aligned m64n(\d+)k16 f32 (bf16|f16) \2"
    shape = re.fullmatch(pattern, " ".join(instruction.parts))
    target, left, right, *scales = instruction.operands
    if shape is None or not left.startswith("%rd") or scales[1:] != ["1", "1", "0", "0"]:
        raise instruction.unknown()
    columns, kind = int(shape[1]), shape[2]
    read_left = operand_reader(instruction, left, "u64")
    read_right = operand_reader(instruction, right, "u64")
    read_keep = operand_reader(instruction, scales[0], "pred")
    sums = readers(instruction, target, "f32")
    write = writers(instruction, target)

    def issue(unit: Unit) -> None:
        a_descriptors, b_descriptors = [
            _of_warps(instruction, read(unit)) for read in (read_left, read_right)
        ]
        keep = read_keep(unit)

        def run() -> None:
            a = _tiles(instruction, unit, a_descriptors, _warp_rows(unit), kind)
            b = _tiles(instruction, unit, b_descriptors, np.arange(columns)[None], kind)
            product = a @ b.swapaxes(1, 2)  # [warps, 16, columns]
            for tile in range(columns // 8):
                for place, (row, column) in enumerate(SUMS):
                    number = 4 * tile + place
                    values = product[:, row, 8 * tile + column].reshape(-1)
                    if keep.any():  # else the registers may have nothing
                        values = values + np.where(keep, sums[number](unit), np.float32(0))
                    write[number](unit, None, values.astype(np.float32))

        unit.products.issue(run)

    return by_whole_units(instruction, issue)


def _of_warps(instruction: Instruction, descriptors: NDArray) -> NDArray:
    """[warps]: the descriptor of each warp, which all of its lanes have."""
    lanes = descriptors.reshape(-1, WARP)
    if (lanes != lanes[:, :1]).any():
        raise Fault(f"lanes of a warp have several descriptors: {instruction.text}")
    return lanes[:, 0].astype(np.int64)


def _warp_rows(unit: Unit) -> NDArray:
    """[warps, 16]: the rows of A that each warp multiplies."""
    first = np.concatenate(
        [np.full(unit.blocks.count, 16 * (warp % 4)) for warp, _ in unit.warp_numbers()]
    )
    return first[:, None] + np.arange(16)


def _tiles(
    instruction: Instruction, unit: Unit, descriptors: NDArray, rows: NDArray, kind: str
) -> NDArray:
    """[warps, rows, 16] fp64: rows of the tile that a descriptor points to.

    PTX ISA, "Matrix descriptor" and "Swizzling modes". A descriptor has the address / 16, at bit 32
    the bytes between groups of 8 rows / 16, each in 14 bits, and at bit 62 the mode. With rows of
    128 bytes bits 4 to 6 of an address are xored with bits 7 to 9; with 64 bytes two, with 32 one.
    """
    modes = descriptors >> 62 & 3
    if (modes != modes[0]).any() or int(modes[0]) not in SWIZZLES:
        raise instruction.unknown()
    width = SWIZZLES[int(modes[0])]
    start = (descriptors & 0x3FFF) << 4
    stride = (descriptors >> 32 & 0x3FFF) << 4
    at_row = start[:, None] + rows // 8 * stride[:, None] + rows % 8 * width
    addresses = at_row[:, :, None] + 2 * np.arange(16)
    addresses ^= (addresses >> 7 & (width // 16 - 1)) << 4
    unit.blocks.shared.check(addresses, 2, instruction.text)
    base = unit.shared_base()[::WARP]
    return _to_float64(unit.blocks.shared.load(addresses + base[:, None, None], 2), kind)
