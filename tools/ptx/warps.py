"""Exchange between the lanes of a warp: shfl and redux. All of its lanes must take part."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptx.blocks import WARP, Mask, Unit
from ptx.memory import Fault
from ptx.operands import Step, reader, writer
from ptx.program import Instruction

ALL_LANES = 0xFFFFFFFF
REDUCTIONS = {"add": np.add, "min": np.minimum, "max": np.maximum}


def check_whole_warps(instruction: Instruction, mask: Mask) -> None:
    """Raise Fault where a guard lets only some lanes of a warp take part."""
    if mask is not None:
        lanes = mask.reshape(-1, WARP)
        if (lanes.any(1) != lanes.all(1)).any():
            raise Fault(f"only some lanes of a warp are active: {instruction.text}")


def by_whole_units(instruction: Instruction, act: Callable[[Unit], None]) -> Step:
    """What all threads of a unit do together: here groups of asynchronous work belong to units."""

    def step(unit: Unit, mask: Mask) -> None:
        if mask is not None:
            raise instruction.unknown()
        act(unit)

    return step


def shuffle(instruction: Instruction) -> Step:
    """`shfl.sync.bfly.b32 %r1, %r2, lanes, 31, -1`."""
    target, source, lanes, clamp, members = instruction.operands
    how = instruction.parts[2]
    if clamp not in ("31", "0x1f") or how not in ("bfly", "idx"):
        raise instruction.unknown()
    read = reader(instruction, source, "b32")
    read_lanes = reader(instruction, lanes, "u32")
    read_members = reader(instruction, members, "u32")
    write = writer(instruction, target)

    def step(unit: Unit, mask: Mask) -> None:
        check_whole_warps(instruction, mask)
        _check_members(instruction, read_members(unit), mask)
        thread = np.arange(unit.size, dtype=np.uint32)
        lane = thread % WARP
        other = read_lanes(unit) % WARP
        from_lane = lane ^ other if how == "bfly" else other
        write(unit, mask, read(unit)[thread - lane + from_lane])

    return step


def reduce(instruction: Instruction) -> Step:
    """`redux.sync.max.s32 %r1, %r2, members`: every lane gets the warp's sum, least or greatest."""
    target, source, members = instruction.operands
    if instruction.parts[2] not in REDUCTIONS:
        raise instruction.unknown()
    function = REDUCTIONS[instruction.parts[2]]
    read = reader(instruction, source, instruction.type)
    read_members = reader(instruction, members, "u32")
    write = writer(instruction, target)

    def step(unit: Unit, mask: Mask) -> None:
        check_whole_warps(instruction, mask)
        _check_members(instruction, read_members(unit), mask)
        values = read(unit).reshape(-1, WARP)
        write(unit, mask, np.repeat(function.reduce(values, axis=1), WARP))

    return step


def _check_members(instruction: Instruction, members: NDArray, mask: Mask) -> None:
    if (members[slice(None) if mask is None else mask] != ALL_LANES).any():
        raise instruction.unknown()
