"""Global memory of a launch and shared memory of blocks. A bad access raises Fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UINTS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # by bytes
BASE = 1 << 32  # address of the first byte of global memory
GAP = 256  # bytes between two tensors' storages that nobody may touch
UNWRITTEN = 0xFF  # of shared memory: nan in every float type


class Fault(RuntimeError):
    """What a GPU would report as an illegal access, or what PTX leaves undefined."""


class Memory:
    """Bytes and which of them may be accessed. base: the address of the first one."""

    def __init__(self, data: NDArray[np.uint8], base: int):
        self.data = data
        self.base = base
        self._views = {
            size: data[: len(data) // size * size].view(dtype) for size, dtype in UINTS.items()
        }

    def load(self, addresses: NDArray[np.int64], size: int) -> NDArray:
        """Numbers of `size` bytes (1, 2, 4, 8). The addresses were checked before."""
        return self._views[size][(addresses - self.base) // size]

    def store(self, addresses: NDArray[np.int64], values: NDArray, size: int) -> None:
        """Of two threads that write to one place, the later one's value stays."""
        self._views[size][(addresses - self.base) // size] = values

    def _check_alignment(self, addresses: NDArray[np.int64], size: int, text: str) -> None:
        is_bad = addresses % size != 0
        if is_bad.any():
            raise Fault(f"misaligned: {size} bytes at {addresses[is_bad][0]:#x}: {text}")


class GlobalMemory(Memory):
    """Copies of tensors' storages, with gaps between them. Offsets modulo GAP are the storages'."""

    def __init__(self, storages: Sequence[tuple[int, NDArray[np.uint8]]]):
        """storages: the address on the host and the bytes of each."""
        self._places: dict[int, slice] = {}
        self.descriptors: list[Any] = []  # those of the launch's tensors, for copies of tiles
        end = GAP
        for pointer, data in storages:
            start = end + pointer % GAP
            self._places[pointer] = slice(start, start + len(data))
            end = start + -(-len(data) // GAP) * GAP + GAP
        super().__init__(np.zeros(end, np.uint8), BASE)
        self._may_access = np.zeros(end, bool)
        for pointer, data in storages:
            self.data[self._places[pointer]] = data
            self._may_access[self._places[pointer]] = True

    def address(self, storage_pointer: int, pointer: int) -> int:
        """The emulator's address of the host's `pointer` into a storage."""
        return self.base + self._places[storage_pointer].start + pointer - storage_pointer

    def bytes_of(self, storage_pointer: int) -> NDArray[np.uint8]:
        return self.data[self._places[storage_pointer]]

    def check(self, addresses: NDArray[np.int64], size: int, text: str) -> None:
        """Raise Fault for an access of `size` bytes outside of the tensors, or not aligned."""
        self._check_alignment(addresses, size, text)
        first = addresses - self.base
        is_bad = (first < 0) | (first + size > len(self.data))
        inside = first[~is_bad]
        # No tensor and no gap is shorter than what lies between both ends of an aligned access.
        is_bad[~is_bad] = ~(self._may_access[inside] & self._may_access[inside + size - 1])
        if is_bad.any():
            raise Fault(f"out of bounds: {size} bytes at {addresses[is_bad][0]:#x}: {text}")


class SharedMemory(Memory):
    """`size` bytes of each block. Addresses are those of a block, plus block * pitch."""

    def __init__(self, blocks: int, size: int):
        self.size = size
        self.pitch = -(-size // 1024) * 1024  # swizzles need 1024 bytes
        super().__init__(np.full(blocks * self.pitch, UNWRITTEN, np.uint8), 0)

    def check(self, addresses: NDArray[np.int64], size: int, text: str) -> None:
        """Raise Fault for an access of `size` bytes outside of the block's bytes, or not aligned.

        addresses: of a block, without block * pitch.
        """
        self._check_alignment(addresses, size, text)
        is_bad = (addresses < 0) | (addresses + size > self.size)
        if is_bad.any():
            raise Fault(f"out of bounds: {size} shared bytes at {addresses[is_bad][0]:#x}: {text}")
