"""How many bytes of tensors are alive, and were at most: `MemoryMeter`."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RESIZE = torch.UntypedStorage.resize_  # dispatch modes do not see it
PLAIN = (Tensor, torch.nn.Parameter)  # a DTensor has a plain tensor inside


class MemoryMeter(TorchDispatchMode):
    """Counts the storages of tensors that are made inside of it, also inside our own ops.

    live: bytes that are alive. peak: the most since the start or since `reset_peak`. Storages that
    are resized, as FSDP2 does with gathered weights, count with the change. What a library
    allocates inside one operator is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}  # by id of the storage
        self._references: dict[int, weakref.ref] = {}
        self._depth = 0

        def resize_and_count(storage: torch.UntypedStorage, size: int) -> Any:
            if id(storage) not in self._sizes:  # older than this meter
                self._watch(storage)
                self._sizes[id(storage)] = storage.nbytes()
            result = RESIZE(storage, size)
            self._set_size(id(storage), size)
            return result

        self._resize_and_count = resize_and_count

    def reset_peak(self) -> None:
        self.peak = self.live

    def __enter__(self) -> MemoryMeter:
        if self._depth == 0:  # __torch_dispatch__ enters again
            torch.UntypedStorage.resize_ = self._resize_and_count  # pyright: ignore
        self._depth += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._depth -= 1
        if self._depth == 0:
            torch.UntypedStorage.resize_ = RESIZE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(storage) for storage in _storages((args, kwargs))}
        if func.namespace == "srt_kernels":
            with self:
                return OPDEFS[f"srt_kernels::{func.overloadpacket.__name__}"]._init_fn(*args)
        results = func(*args, **(kwargs or {}))
        for storage in _storages(results):
            address = id(storage)
            if address in inputs or address in self._sizes:
                continue
            self._watch(storage)
            self._set_size(address, storage.nbytes())
        return results

    def _watch(self, storage: torch.UntypedStorage) -> None:
        address = id(storage)
        self._references[address] = weakref.ref(storage, lambda _: self._forget(address))

    def _set_size(self, address: int, size: int) -> None:
        self.live += size - self._sizes.get(address, 0)
        self._sizes[address] = size
        self.peak = max(self.peak, self.live)

    def _forget(self, address: int) -> None:
        self.live -= self._sizes.pop(address)
        del self._references[address]


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if type(leaf) in PLAIN]
