"""The launchers of srt_kernels on CPU tensors, with the emulator as their GPU."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton.knobs
from torch import Tensor
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

import srt_kernels
from compiled.chips import Chip, reported_chip
from ptx.bulk_copies import TileDescriptor
from ptx.kernel import Kernel
from ptx.memory import GlobalMemory
from ptx.schedule import LOCKSTEP, Schedule
from srt_kernels.core import autograd
from srt_kernels.lm_head import gemm, logprob_kernel

SCALARS = {
    "i32": np.int32,
    "i64": np.int64,
    "u64": np.uint64,
    "fp32": np.float32,
    "fp64": np.float64,
}
_kernels: dict[tuple[bytes, int], Kernel] = {}


def unchanged(ptx: str) -> str:
    return ptx


@contextmanager
def emulated(
    chip: Chip, schedule: Schedule = LOCKSTEP, mutate: Callable[[str], str] = unchanged
) -> Iterator[list[str]]:
    """Ops on CPU tensors compile their Triton kernels for `chip` and run the PTX in the emulator.

    mutate: changes the PTX before it runs. Gives a list to which each launch adds the name of its
    kernel. GEMMs that a GPU leaves to cuBLAS are torch's, from the same operands, in fp32.
    """
    launches: list[str] = []
    compile_kernel: Any = JITFunction.run

    def run(self: Any, *arguments: Any, grid: tuple, warmup: bool, **options: Any) -> Any:
        kernel = compile_kernel(self, *arguments, grid=grid, warmup=True, **options)
        names = [parameter.name for parameter in self.params]
        values = dict(zip(names, arguments, strict=False)) | options
        signature = kernel.src.signature
        live = [(signature[name], values[name]) for name in names if signature[name] != "constexpr"]
        launches.append(self.__name__)
        ptx = mutate(kernel.asm["ptx"])
        _run(_kernel(ptx, kernel.metadata), grid, live, schedule)
        return kernel

    with _gpu_paths(chip), patch.object(JITFunction, "run", run):
        yield launches


def _kernel(ptx: str, metadata: Any) -> Kernel:
    key = (hashlib.sha256(ptx.encode()).digest(), metadata.shared)
    if key not in _kernels:
        _kernels[key] = Kernel(ptx, metadata.name, metadata.shared)
    return _kernels[key]


def _run(kernel: Kernel, grid: tuple, live: list[tuple[str, Any]], schedule: Schedule) -> None:
    """live: the type and value of each argument that is no constant."""
    tensors = [value for kind, value in live if kind.startswith("*")]
    tensors += [value.base for kind, value in live if kind.startswith("tensordesc")]
    storages = {tensor.untyped_storage().data_ptr(): _storage_bytes(tensor) for tensor in tensors}
    memory = GlobalMemory(list(storages.items()))
    arguments: list[np.generic] = []
    for kind, value in live:
        if kind.startswith("*"):
            pointer = memory.address(value.untyped_storage().data_ptr(), value.data_ptr())
            arguments.append(np.uint64(pointer))
        elif kind.startswith("tensordesc"):
            arguments += _descriptor_arguments(value, memory)
        elif kind in SCALARS:
            arguments.append(SCALARS[kind](value))
        else:
            raise NotImplementedError(f"the emulator does not know arguments of type {kind}")
    x, y, z = (*grid, 1, 1)[:3]
    kernel.run((x, y, z), arguments, memory, schedule)
    for pointer, data in storages.items():
        data[:] = memory.bytes_of(pointer)


def _descriptor_arguments(value: TensorDescriptor, memory: GlobalMemory) -> list[np.generic]:
    """The parameters of a descriptor: its number, the shape and the strides."""
    base = value.base
    pointer = memory.address(base.untyped_storage().data_ptr(), base.data_ptr())
    row_bytes = base.stride(0) * base.itemsize
    tile = (value.block_shape[0], value.block_shape[1])
    memory.descriptors.append(TileDescriptor(pointer, tuple(base.shape), row_bytes, tile))
    number = np.uint64(len(memory.descriptors) - 1)
    return [number, *map(np.int32, base.shape), *map(np.int64, base.stride())]


def _storage_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor's whole storage, which they share."""
    return torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()


def kernel_names() -> set[str]:
    """The names of all kernels in srt_kernels."""
    values = [value for module in _modules() for value in vars(module).values()]
    names = {value.__name__ for value in values if isinstance(value, JITFunction)}
    return {name for name in names if name.endswith("_kernel")}


def _modules() -> list[ModuleType]:
    packages = pkgutil.walk_packages(srt_kernels.__path__, "srt_kernels.")
    return [importlib.import_module(package.name) for package in packages]


@contextmanager
def _gpu_paths(chip: Chip) -> Iterator[None]:
    """Let the ops take the paths of a GPU for CPU tensors: kernels, tiles, types and buffers."""
    _modules()  # before the interpreter is switched on
    tile_of = logprob_kernel.tile_of
    with (
        reported_chip(chip),
        triton.knobs.runtime.scope(),
        patch.object(
            logprob_kernel, "tile_of", lambda _, dtype: tile_of(torch.device("cuda"), dtype)
        ),
        patch.object(gemm, "is_interpreted_bf16", lambda _: False),
        patch.object(autograd, "is_interpreted_bf16", lambda _: False),
        patch.object(gemm, "logits_buffer", _logits_buffer),
        patch.object(gemm, "logits_gemm", _logits_gemm),
    ):
        triton.knobs.runtime.interpret = True  # use_triton then says yes to CPU tensors
        yield


def _logits_buffer(weight: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """As gemm.logits_buffer on a GPU. What no GEMM writes is nan."""
    return torch.full((rows, gemm.padded_columns(len(weight))), torch.nan, dtype=dtype)


def _logits_gemm(x: Tensor, weight: Tensor, is_exact_in_bf16: bool, buffer: Tensor) -> Tensor:
    """As gemm.logits_gemm on a GPU, by the CPU's BLAS."""
    out = buffer[: len(x), : len(weight)]
    return out.copy_(x.to(out.dtype) @ weight.to(out.dtype).t())
