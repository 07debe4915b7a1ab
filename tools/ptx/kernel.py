"""A kernel that can be run: control flow, barriers, and what each other instruction does."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from ptx import arithmetic, bulk_copies, comparison, conversion, tensor_cores, transfers, warps
from ptx.blocks import WARP, Blocks, Mask, Unit
from ptx.memory import Fault, GlobalMemory
from ptx.operands import Reader, Step, reader
from ptx.program import Instruction, parse
from ptx.schedule import Schedule

THREADS_AT_A_TIME = 1 << 14  # whose registers fit a CPU's caches
CONTROL = ("bra", "ret", "exit", "bar")
MEETINGS = ("shfl", "redux", "ldmatrix", "mma")  # lanes wait here for the others of their warp
COMPILERS = {
    "ld": transfers.load,
    "st": transfers.store,
    "cp": transfers.copy,
    "cvta": bulk_copies.descriptor_address,
    "elect": bulk_copies.elect,
    "mbarrier": bulk_copies.barrier,
    "ldmatrix": transfers.load_matrices,
    "mma": tensor_cores.multiply,
    "wgmma": tensor_cores.multiply_group,
    "shfl": warps.shuffle,
    "redux": warps.reduce,
    "setp": comparison.compare,
    "selp": comparison.select,
    "cvt": conversion.convert,
    "mov": arithmetic.move,
}
# Hints for caches, and an order of memory that this emulator has anyway.
WITHOUT_EFFECT = ("createpolicy", "fence")


def _nothing(unit: Unit, mask: Mask) -> None:
    pass


def _step(instruction: Instruction) -> Step:
    """What an instruction does, where its guard allows it."""
    if instruction.name in CONTROL:
        _check_control(instruction)
        return _nothing
    if instruction.name in WITHOUT_EFFECT:
        return _nothing
    step = COMPILERS.get(instruction.name, arithmetic.compute)(instruction)
    if not instruction.guard:
        return step
    guard = reader(instruction, instruction.guard, "pred")

    def guarded(unit: Unit, mask: Mask) -> None:
        is_active = guard(unit) if mask is None else guard(unit) & mask
        if is_active.all():
            step(unit, None)
        elif is_active.any():
            step(unit, is_active)

    return guarded


def _check_control(instruction: Instruction) -> None:
    is_barrier = instruction.name == "bar"
    known = ("bar", "sync") if is_barrier else (instruction.name, "uni")
    is_known = instruction.parts == known[: len(instruction.parts)]
    if not is_known or is_barrier and (instruction.operands != ("0",) or instruction.guard):
        raise instruction.unknown()


def _in_split_warps(is_active: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The active threads in whose warps others are not."""
    lanes = is_active.reshape(-1, WARP)
    return (lanes & ~lanes.all(1, keepdims=True)).reshape(-1)


class Kernel:
    """A kernel of a PTX module. Raises NotImplementedError that names an unknown instruction."""

    def __init__(self, ptx: str, name: str, shared_bytes: int):
        """shared_bytes: of the launch, for each block."""
        self.program = parse(ptx, name)
        self._shared_bytes = shared_bytes
        self._instructions = self.program.instructions
        self._end = len(self._instructions)
        self._steps = [_step(instruction) for instruction in self._instructions]
        self._guards: dict[int, Reader] = {
            index: reader(instruction, instruction.guard, "pred")
            for index, instruction in enumerate(self._instructions)
            if instruction.name in CONTROL and instruction.guard
        }
        self._next_control = self._find_next(CONTROL)
        self._next_meeting = self._find_next(MEETINGS)

    def _find_next(self, names: tuple[str, ...]) -> list[int]:
        """The first instruction of one of these names at or after each place."""
        found = [self._end] * (self._end + 1)
        for index in reversed(range(self._end)):
            is_found = self._instructions[index].name in names
            found[index] = index if is_found else found[index + 1]
        return found

    def run(
        self,
        grid: tuple[int, int, int],
        arguments: list[np.generic],
        memory: GlobalMemory,
        schedule: Schedule,
    ) -> None:
        """Run all blocks of a grid. arguments: those that the PTX has; more parameters are 0.

        Raises Fault for a bad access, a barrier that not all threads reach, or a register that is
        read before it is written.
        """
        zeros = itertools.repeat(np.uint64(0))
        values = itertools.chain(arguments, zeros)
        parameters = dict(zip(self.program.parameters, values, strict=False))
        x, y, z = grid
        places = np.stack(np.unravel_index(np.arange(x * y * z), (z, y, x))[::-1], 1)
        if schedule.warps == "reverse":
            places = places[::-1]
        at_a_time = max(1, THREADS_AT_A_TIME // self.program.threads)
        with np.errstate(all="ignore"):
            for start in range(0, len(places), at_a_time):
                blocks = Blocks(
                    places[start : start + at_a_time].astype(np.uint32),
                    grid,
                    self.program.threads,
                    self._shared_bytes,
                    memory,
                    parameters,
                )
                self._run_blocks(blocks, schedule)

    def _run_blocks(self, blocks: Blocks, schedule: Schedule) -> None:
        units = blocks.units(schedule)
        while (blocks.position < self._end).any():
            before = blocks.position.copy()
            for unit in units:
                self._run_to_barrier(unit)
            if not any(unit.is_stalled for unit in units):
                self._release(blocks)
            elif (blocks.position == before).all():
                raise Fault("all threads wait for copies that nobody has issued")

    def _release(self, blocks: Blocks) -> None:
        """Let threads go on that wait at a barrier. All of a block must wait at the same one."""
        positions = blocks.position.reshape(blocks.warps, blocks.count, WARP)
        if (positions != positions[:1, :, :1]).any():
            at = positions.max(axis=(0, 2))[(positions != positions[:1, :, :1]).any((0, 2))][0]
            text = self._instructions[at].text if at < self._end else "the end"
            raise Fault(f"only some threads of a block are at {text}")
        blocks.position[blocks.is_waiting] += 1
        blocks.is_waiting[:] = False

    def _run_to_barrier(self, unit: Unit) -> None:
        """Step the threads that are farthest behind until all wait, also for copies, or have ended.

        Lanes that reach a meeting of their warp early are held until the others are there.
        """
        position = unit.position
        unit.is_stalled = False
        is_held = np.zeros(unit.size, bool)
        while not unit.is_stalled:
            is_ready = ~unit.is_waiting & (position < self._end)
            if not is_ready.any():
                return
            is_free = is_ready & ~is_held
            if not is_free.any():
                text = self._instructions[position[is_held].min()].text
                raise Fault(f"only some lanes of a warp are at {text}")
            at = int(position[is_free].min())
            is_active = is_ready & (position == at)
            is_split = _in_split_warps(is_active)
            if self._next_meeting[at] == at and is_split.any():
                is_held |= is_split
                is_active &= ~is_split
            if is_active.any():
                self._run_straight(unit, at, is_active, is_split.any())
                is_held[:] = False

    def _run_straight(
        self, unit: Unit, at: int, is_active: NDArray[np.bool_], has_split_warps: np.bool_
    ) -> None:
        """Step the active threads up to where others are, or to the next control flow."""
        control = self._next_control[at]
        ahead = unit.position[unit.position > at]
        stop = min(control, int(ahead.min(initial=self._end)))
        if has_split_warps:
            after = at + (self._next_meeting[at] == at)
            stop = min(stop, self._next_meeting[after])
        mask = None if is_active.all() else is_active
        for step in self._steps[at:stop]:
            step(unit, mask)
        unit.position[is_active] = stop
        if stop == control and stop not in ahead:
            self._branch(unit, stop, is_active)

    def _branch(self, unit: Unit, at: int, is_active: NDArray[np.bool_]) -> None:
        """Control flow of the active threads, which all are `at` one instruction."""
        if at == self._end:
            return
        instruction = self._instructions[at]
        if instruction.name == "bar":
            unit.is_waiting[is_active] = True
            return
        is_taken = is_active
        if at in self._guards:
            is_taken = is_active & self._guards[at](unit)
        is_end = instruction.name in ("ret", "exit")
        target = self._end if is_end else self.program.labels[instruction.operands[0]]
        unit.position[is_active] = at + 1
        unit.position[is_taken] = target
