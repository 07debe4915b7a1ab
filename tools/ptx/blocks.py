"""The threads of some blocks that are run together, and the parts of them that step together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.memory import Fault, GlobalMemory, SharedMemory
from ptx.schedule import Schedule

WARP = 32
Mask = NDArray[np.bool_] | None  # the threads of a unit that are active; None: all of them


class Registers(dict[str, NDArray]):
    """Registers by name, each of all threads."""

    def __missing__(self, name: str) -> NDArray:
        raise Fault(f"read before it is written: {name}")


class Blocks:
    """A batch of blocks. Threads lie in the order warp, block, lane.

    So the threads that have one warp number are a slice, and each warp is 32 neighbours.
    """

    def __init__(
        self,
        places: NDArray[np.uint32],
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        memory: GlobalMemory,
        parameters: dict[str, np.generic],
    ):
        """places [blocks, 3]: ctaid of each. threads: of a block."""
        count = len(places)
        self.count = count
        self.warps = threads // WARP
        warp, block, lane = np.indices((self.warps, count, WARP), np.uint32).reshape(3, -1)
        self.block = block.astype(np.int64)
        self.special = {
            "%tid.x": warp * WARP + lane,
            "%laneid": lane,
            "%ntid.x": np.full_like(lane, threads),
        }
        for axis, name in enumerate("xyz"):
            self.special[f"%ctaid.{name}"] = places[block, axis]
            self.special[f"%nctaid.{name}"] = np.full_like(lane, grid[axis])
        self.registers = Registers()
        self.memory = memory
        self.shared = SharedMemory(count, shared_bytes)
        self.parameters = parameters
        self.copy_barriers: dict[tuple[int, int], Any] = {}  # by block and address
        self.position = np.zeros(len(lane), np.int64)  # of the next instruction
        self.is_waiting = np.zeros(len(lane), bool)  # at a barrier

    def units(self, schedule: Schedule) -> list[Unit]:
        """The parts that run to their next barrier, one after the other."""
        size = len(self.position)
        if schedule.warps == "together":
            return [Unit(self, slice(0, size), schedule)]
        step = self.count * WARP
        units = [Unit(self, slice(at, at + step), schedule) for at in range(0, size, step)]
        return units[::-1] if schedule.warps == "reverse" else units


class Work:
    """Asynchronous work of a unit, in groups: copies (cp.async) or products (wgmma)."""

    def __init__(self, is_late: bool):
        self._is_late = is_late
        self._open: list[Callable[[], None]] = []
        self._groups: list[list[Callable[[], None]]] = []

    def issue(self, work: Callable[[], None]) -> None:
        if self._is_late:
            self._open.append(work)
        else:
            work()

    def commit(self) -> None:
        self._groups.append(self._open)
        self._open = []

    def wait(self, most: int) -> None:
        """Do the work of all but the last `most` groups."""
        while len(self._groups) > most:
            for work in self._groups.pop(0):
                work()


class Unit:
    """Threads of a batch that step together."""

    def __init__(self, blocks: Blocks, part: slice, schedule: Schedule):
        self.blocks = blocks
        self.part = part
        self.size = part.stop - part.start
        self.position = blocks.position[part]
        self.is_waiting = blocks.is_waiting[part]
        self.block = blocks.block[part]
        self.copies = Work(schedule.late_copies)
        self.has_late_copies = schedule.late_copies
        self.is_stalled = False  # at an mbarrier, until others have run
        self.products = Work(schedule.late_products)

    def shared_base(self, threads: slice = slice(None)) -> NDArray[np.int64]:
        """Where each thread's block begins in shared memory."""
        return self.block[threads] * self.blocks.shared.pitch

    def warp_numbers(self) -> Iterator[tuple[int, slice]]:
        """Each warp number, and the unit's threads that have it: those of all blocks."""
        step = self.blocks.count * WARP
        first = self.part.start // step
        for index in range(self.size // step):
            yield first + index, slice(index * step, (index + 1) * step)
