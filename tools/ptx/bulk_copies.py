"""Copies of tiles by the tensor memory accelerator, and the mbarriers that count their bytes.

PTX ISA, "cp.async.bulk.tensor" and "mbarrier". Descriptors are those that Triton makes of a
TensorDescriptor: two dimensions, numbers of 2 bytes, rows of 128 bytes with the swizzle of 128
bytes, zeros where a tile leaves the tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptx.blocks import WARP, Blocks, Mask, Unit
from ptx.memory import Fault
from ptx.operands import Step, address, reader, writer
from ptx.program import Instruction

ROW_BYTES = 128


@dataclass(frozen=True)
class TileDescriptor:
    """A tensor [rows, columns] of 2-byte numbers in global memory, and the size of a tile."""

    address: int
    shape: tuple[int, int]
    row_bytes: int  # from a row to the next
    tile: tuple[int, int]


@dataclass
class CopyBarrier:
    """An mbarrier: its phase ends when all threads have arrived and all bytes are there."""

    count: int  # threads that arrive in a phase
    missing: int  # of them
    missing_bytes: int = 0
    phase: int = 0
    late_copies: list[Callable[[], None]] = field(default_factory=list)

    def arrive(self, expected_bytes: int) -> None:
        self.missing -= 1
        self.missing_bytes += expected_bytes
        self._end_phase()

    def receive(self, size: int) -> None:
        self.missing_bytes -= size
        self._end_phase()

    def _end_phase(self) -> None:
        if self.missing == 0 and self.missing_bytes == 0:
            self.missing = self.count
            self.phase += 1


def descriptor_address(instruction: Instruction) -> Step:
    """`cvta.param.u64 %rd1, %rd2`: a descriptor's number stands for its address everywhere."""
    if instruction.parts != ("cvta", "param", "u64"):
        raise instruction.unknown()
    write = writer(instruction, instruction.operands[0])
    read = reader(instruction, instruction.operands[1], "u64")
    return lambda unit, mask: write(unit, mask, read(unit))


def elect(instruction: Instruction) -> Step:
    """`elect.sync %r1|%p1, -1`: the first lane of each warp."""
    register, _, predicate = instruction.operands[0].partition("|")
    if instruction.parts != ("elect", "sync") or instruction.operands[1] != "-1":
        raise instruction.unknown()
    write_lane, write = writer(instruction, register), writer(instruction, predicate)

    def step(unit: Unit, mask: Mask) -> None:
        write_lane(unit, mask, np.zeros(unit.size, np.uint32))
        write(unit, mask, np.arange(unit.size) % WARP == 0)

    return step


def _threads(unit: Unit, mask: Mask) -> NDArray[np.int64]:
    return np.arange(unit.size) if mask is None else np.flatnonzero(mask)


def barrier(instruction: Instruction) -> Step:
    """mbarrier.init, .arrive.expect_tx, .try_wait.parity and .inval in shared memory."""
    what = ".".join(instruction.parts[1:-2])
    if instruction.parts[-2:] != ("shared::cta", "b64"):
        raise instruction.unknown()
    if what == "init":
        return _barrier_init(instruction)
    if what == "arrive.expect_tx":
        return _barrier_arrive(instruction)
    if what == "try_wait.parity":
        return _barrier_wait(instruction)
    if what == "inval":
        return lambda unit, mask: None
    raise instruction.unknown()


def _barrier_init(instruction: Instruction) -> Step:
    at = address(instruction, instruction.operands[0])
    count = int(instruction.operands[1])

    def step(unit: Unit, mask: Mask) -> None:
        places = at(unit)
        unit.blocks.shared.check(places[_threads(unit, mask)], 8, instruction.text)
        for thread in _threads(unit, mask):
            place = int(unit.block[thread]), int(places[thread])
            unit.blocks.copy_barriers[place] = CopyBarrier(count, count)

    return step


def _barriers(
    unit: Unit, mask: Mask, places: NDArray, instruction: Instruction
) -> Iterator[tuple[int, CopyBarrier]]:
    """The active threads, and the barrier of each."""
    barriers = unit.blocks.copy_barriers
    for thread in _threads(unit, mask):
        place = int(unit.block[thread]), int(places[thread])
        if place not in barriers:
            raise Fault(f"no mbarrier: {instruction.text}")
        yield int(thread), barriers[place]


def _barrier_arrive(instruction: Instruction) -> Step:
    ignored, place, size = instruction.operands
    if ignored != "_":
        raise instruction.unknown()
    at, expected_bytes = address(instruction, place), int(size)

    def step(unit: Unit, mask: Mask) -> None:
        for _, copy_barrier in _barriers(unit, mask, at(unit), instruction):
            copy_barrier.arrive(expected_bytes)

    return step


def _barrier_wait(instruction: Instruction) -> Step:
    """Whether the phase of that parity has ended. If not, the unit lets others run."""
    target, place, parity = instruction.operands
    write = writer(instruction, target)
    at, read_parity = address(instruction, place), reader(instruction, parity, "u32")

    def step(unit: Unit, mask: Mask) -> None:
        has_ended = np.zeros(unit.size, bool)
        parities = read_parity(unit)
        for thread, copy_barrier in _barriers(unit, mask, at(unit), instruction):
            while copy_barrier.late_copies:
                copy_barrier.late_copies.pop(0)()
            has_ended[thread] = copy_barrier.phase % 2 != parities[thread]
        unit.is_stalled |= not has_ended[_threads(unit, mask)].all()
        write(unit, mask, has_ended)

    return step


def copy_tile(instruction: Instruction) -> Step:
    """`cp.async.bulk.tensor.2d... [%r1], [%rd1, {%r2, %r3}], [%r4]`: column %r2 and row %r3 on."""
    known = "cp async bulk tensor 2d shared::cta global mbarrier::complete_tx::bytes"
    source = re.fullmatch(r"\[(%rd\d+), ?\{(%r\d+), ?(%r\d+)\}\]", instruction.operands[1])
    if " ".join(instruction.parts) != known or source is None:
        raise instruction.unknown()
    read_descriptor = reader(instruction, source[1], "u64")
    read_column, read_row = [reader(instruction, source[place], "s32") for place in (2, 3)]
    target = address(instruction, instruction.operands[0])
    at = address(instruction, instruction.operands[2])

    def step(unit: Unit, mask: Mask) -> None:
        values = [read(unit) for read in (read_descriptor, read_row, read_column, target)]
        for thread, copy_barrier in _barriers(unit, mask, at(unit), instruction):
            number, row, column, to = [int(value[thread]) for value in values]
            descriptor = unit.blocks.memory.descriptors[number]
            block = int(unit.block[thread])

            def run(arguments=(unit.blocks, block, descriptor, row, column, to)) -> int:
                return _copy(instruction, *arguments)

            if unit.has_late_copies:
                copy_barrier.late_copies.append(
                    lambda barrier=copy_barrier, run=run: barrier.receive(run())
                )
            else:
                copy_barrier.receive(run())

    return step


def _copy(
    instruction: Instruction,
    blocks: Blocks,
    block: int,
    descriptor: TileDescriptor,
    row: int,
    column: int,
    to: int,
) -> int:
    """Copy a tile to `to` of a block's shared memory. Returns its bytes."""
    height, width = descriptor.tile
    if 2 * width != ROW_BYTES or to % (8 * ROW_BYTES):
        raise instruction.unknown()
    rows, columns = np.indices((height, width))
    places = to + rows * ROW_BYTES + 2 * columns
    places ^= (places >> 7 & 7) << 4
    is_inside = (row + rows < descriptor.shape[0]) & (column + columns < descriptor.shape[1])
    sources = (row + rows) * descriptor.row_bytes + 2 * (column + columns) + descriptor.address
    blocks.memory.check(sources[is_inside], 2, instruction.text)
    values = np.zeros((height, width), np.uint16)
    values[is_inside] = blocks.memory.load(sources[is_inside], 2)
    blocks.shared.check(places, 2, instruction.text)
    blocks.shared.store(places + block * blocks.shared.pitch, values, 2)
    return 2 * height * width
