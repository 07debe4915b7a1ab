"""GPUs to compile Triton kernels for, without a GPU, and what a compiler made of a kernel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from compiled.variants import Variant

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"


@dataclass(frozen=True)
class Chip:
    """A GPU's limits: of a block, and of a multiprocessor (AMD: compute unit).

    A multiprocessor has four parts, each with 512 registers a lane.
    """

    name: str
    target: GPUTarget
    warps: int
    shared: int  # bytes of a multiprocessor
    block_shared: int  # bytes of a block
    reserved: int  # bytes that each block takes for the system
    tensor: str  # pattern of the instruction of its tensor cores

    @property
    def is_cuda(self) -> bool:
        return self.target.backend == "cuda"

    def occupancy(self, registers: int, shared: int, warps: int) -> int:
        """Warps at a time in a multiprocessor, of blocks of `warps` warps."""
        rounded = -(-registers // 8) * 8
        by_registers = 4 * (512 // rounded) // warps
        block_shared = shared + self.reserved
        by_shared = self.shared // block_shared if block_shared else 32
        return warps * min(32, self.warps // warps, by_registers, by_shared)


# CUDA C++ programming guide, technical specifications by compute capability; CDNA 3 ISA guide.
CHIPS = {
    "80": Chip("sm_80", GPUTarget("cuda", 80, 32), 64, 164 << 10, 163 << 10, 1024, "HMMA"),
    "86": Chip("sm_86", GPUTarget("cuda", 86, 32), 48, 100 << 10, 99 << 10, 1024, "HMMA"),
    "89": Chip("sm_89", GPUTarget("cuda", 89, 32), 48, 100 << 10, 99 << 10, 1024, "HMMA"),
    "90": Chip("sm_90", GPUTarget("cuda", 90, 32), 64, 228 << 10, 227 << 10, 1024, "HGMMA"),
    "100": Chip(
        "sm_100", GPUTarget("cuda", 100, 32), 64, 228 << 10, 227 << 10, 1024, "UTC[A-Z]*MMA"
    ),
    "120": Chip("sm_120", GPUTarget("cuda", 120, 32), 48, 100 << 10, 99 << 10, 1024, "HMMA"),
    "gfx942": Chip("gfx942", GPUTarget("hip", "gfx942", 64), 32, 64 << 10, 64 << 10, 0, "v_mfma"),
}


@dataclass(frozen=True)
class Compiled:
    """What a compiler made of a kernel."""

    kernel: str
    variant: str
    arch: str
    warps: int
    registers: int  # of a thread
    # Bytes of a thread's stack. AMD: and 4 for each scalar register that is kept elsewhere.
    spilled: int
    spills: int  # instructions that store to or load from there
    shared: int  # bytes of a block
    occupancy: int  # warps in a multiprocessor
    wide_loads: int  # of 128 bits, from global memory
    narrow_loads: int
    tensor: int  # instructions for tensor cores


class _Driver:
    """The part of a driver that the JIT uses before a launch."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_device(self) -> GPUTarget:
        return self.target  # the JIT keeps its kernels by device

    def get_current_stream(self, device: GPUTarget) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def reported_chip(chip: Chip) -> Iterator[None]:
    """Make torch and Triton report this GPU, as far as launchers ask them."""
    arch = chip.target.arch
    properties = SimpleNamespace(gcnArchName=f"{arch}:sramecc+:xnack-")
    with (
        patch.object(driver, "_active", _Driver(chip.target)),
        patch("torch.version.hip", None if chip.is_cuda else "6.0"),
        patch("torch.cuda.get_device_capability", lambda _: divmod(int(arch), 10)),
        patch("torch.cuda.get_device_properties", lambda _: properties),
    ):
        yield


def compile_variant(variant: Variant, chip: Chip) -> Compiled:
    """Run the variant's launcher, compile its kernel and launch nothing."""
    run = JITFunction.run
    kernels: list[Any] = []

    def compile_only(self, *arguments, grid, warmup, **options) -> None:
        if self.__name__ == variant.kernel:
            kernels.append(run(self, *arguments, grid=grid, warmup=True, **options))

    with reported_chip(chip), patch.object(JITFunction, "run", compile_only):
        variant.launch()
    (kernel,) = kernels
    warps = kernel.metadata.num_warps
    shared = kernel.metadata.shared
    counts = _cuda_counts(kernel, chip) if chip.is_cuda else _amd_counts(kernel, chip)
    return Compiled(
        kernel=variant.kernel,
        variant=variant.name,
        arch=chip.name,
        warps=warps,
        shared=shared,
        occupancy=chip.occupancy(counts["registers"], shared, warps),
        **counts,
    )


def _cuda_counts(kernel: Any, chip: Chip) -> dict[str, int]:
    """Registers and instructions of the machine code, by the tools in Triton's wheel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run_tool("cuobjdump", "-res-usage", file.name)
        code = _run_tool("nvdisasm", "-c", file.name)
    wide_loads = _count(r"\bLDG\S*\.(?:128|256)\b", code)  # also LDGSTS, to shared memory
    return dict(
        registers=_number(r"\bREG:(\d+)", usage),
        spilled=_number(r"\bSTACK:(\d+)", usage) + _number(r"\bLOCAL:(\d+)", usage),
        spills=_count(r"\b(?:STL|LDL)\b", code),
        wide_loads=wide_loads,
        narrow_loads=_count(r"\bLDG", code) - wide_loads,
        tensor=_count(rf"\b{chip.tensor}\b", code),
    )


def _amd_counts(kernel: Any, chip: Chip) -> dict[str, int]:
    """Registers and instructions of the assembly.

    Vector and accumulation registers are one number: they share a file.
    """
    code = kernel.asm["amdgcn"]
    vector_spills = _number(r"\.vgpr_spill_count:\s+(\d+)", code)
    scalar_spills = _number(r"\.sgpr_spill_count:\s+(\d+)", code)
    stack = _number(r"\.private_segment_fixed_size:\s+(\d+)", code)
    wide_loads = _count(r"\b(?:global|buffer)_load_dwordx4", code)
    return dict(
        registers=_number(r"\.vgpr_count:\s+(\d+)", code),
        spilled=stack + 4 * scalar_spills,
        spills=vector_spills + scalar_spills,
        wide_loads=wide_loads,
        narrow_loads=_count(r"\b(?:global|buffer)_load_", code) - wide_loads,
        tensor=_count(rf"\b{chip.tensor}", code),
    )


def _run_tool(name: str, *arguments: str) -> str:
    command = [TOOLS / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, pattern
    return int(match[1])


def _count(pattern: str, code: str) -> int:
    return len(re.findall(pattern, code))
