"""Every Triton kernel compiled ahead of time, without a GPU: registers, spills, shared memory, wide loads, tensor cores.

    python bench/aot.py                                     sm_80, sm_90, sm_100, gfx942
    python bench/aot.py --arch 90 --out bench/results/aot.md

The package's own launchers run (aot_variants.py), on meta tensors of real sizes, before a driver that claims to have the
GPU. Triton's JIT compiles what they launch and stops there: types, alignments, constants, block sizes and warps are those
of a real run. --out writes a table and beside it JSON, and keeps what other versions of Triton have put there. Exit
status 1 if a rule is broken; the last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import triton
import triton.backends.nvidia
from aot_variants import HIDDEN, VARIANTS, VOCABULARY, Variant
from measure import environment
from report import markdown
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from srt_kernels.lm_head import logits_kernel as row_kernel

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"


@dataclass(frozen=True)
class Chip:
    """A GPU's limits: of a block, and of a multiprocessor (AMD: compute unit), whose four parts have 512 registers a lane."""

    name: str
    target: GPUTarget
    warps: int
    shared: int  # bytes of a multiprocessor
    block_shared: int  # bytes of a block
    reserved: int  # bytes that each block takes for the system
    tensor: str  # the instruction of its tensor cores

    @property
    def cuda(self) -> bool:
        return self.target.backend == "cuda"

    def occupancy(self, registers: int, shared: int, warps: int) -> int:
        """Warps at a time in a multiprocessor, of blocks of `warps` warps."""
        by_registers = 4 * (512 // (-(-registers // 8) * 8)) // warps
        by_shared = self.shared // (shared + self.reserved) if shared + self.reserved else 32
        return warps * min(32, self.warps // warps, by_registers, by_shared)


# CUDA C++ programming guide, technical specifications by compute capability; CDNA 3 ISA guide.
CHIPS = {
    "80": Chip("sm_80", GPUTarget("cuda", 80, 32), 64, 164 << 10, 163 << 10, 1024, "HMMA"),
    "90": Chip("sm_90", GPUTarget("cuda", 90, 32), 64, 228 << 10, 227 << 10, 1024, "HGMMA"),
    "100": Chip(
        "sm_100", GPUTarget("cuda", 100, 32), 64, 228 << 10, 227 << 10, 1024, "UTC[A-Z]*MMA"
    ),
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
    spilled: (
        int  # bytes of a thread's stack, and on AMD 4 for each scalar register that went elsewhere
    )
    spills: int  # instructions that store to or load from there
    shared: int  # bytes of a block
    occupancy: int  # warps in a multiprocessor
    wide_loads: int  # of 128 bits, from global memory
    narrow_loads: int
    tensor: int  # instructions for tensor cores


class _Driver:
    """As much of a driver as the JIT asks for before a launch."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_device(self) -> GPUTarget:
        return self.target  # the JIT keeps its kernels by device

    def get_current_stream(self, device: GPUTarget) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def _device(chip: Chip):
    """Have torch and Triton believe in this GPU, as far as launchers ask them."""
    arch = chip.target.arch
    properties = SimpleNamespace(gcnArchName=f"{arch}:sramecc+:xnack-")
    with (
        patch.object(driver, "_active", _Driver(chip.target)),
        patch("torch.version.hip", None if chip.cuda else "6.0"),
        patch("torch.cuda.get_device_capability", lambda _: divmod(arch, 10)),
        patch("torch.cuda.get_device_properties", lambda _: properties),
    ):
        yield


def compile_variant(variant: Variant, chip: Chip) -> Compiled:
    """Run the variant's launcher, compile the kernel it is about and launch nothing."""
    run, found = JITFunction.run, []

    def compile_only(self, *arguments, grid, warmup, **options):
        if self.__name__ == variant.kernel:
            found.append(run(self, *arguments, grid=grid, warmup=True, **options))

    with _device(chip), patch.object(JITFunction, "run", compile_only):
        variant.launch()
    (kernel,) = found
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    registers, counts = (_cuda_counts if chip.cuda else _amd_counts)(kernel, chip)
    occupancy = chip.occupancy(registers, shared, warps)
    return Compiled(
        kernel=variant.kernel,
        variant=variant.name,
        arch=chip.name,
        warps=warps,
        registers=registers,
        shared=shared,
        occupancy=occupancy,
        **counts,
    )


def _count(pattern: str, code: str) -> int:
    return len(re.findall(pattern, code))


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / name, *arguments], capture_output=True, text=True, check=True
    ).stdout


def _cuda_counts(kernel, chip: Chip) -> tuple[int, dict[str, int]]:
    """Registers, and what the machine code says; by the tools in Triton's wheel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            _tool("cuobjdump", "-res-usage", file.name),
            _tool("nvdisasm", "-c", file.name),
        )
    registers, stack, local = (
        int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")
    )
    wide = _count(r"\bLDG\S*\.(?:128|256)\b", code)  # LDGSTS too: straight to shared memory
    counts = dict(
        spilled=stack + local,
        spills=_count(r"\b(?:STL|LDL)\b", code),
        wide_loads=wide,
        narrow_loads=_count(r"\bLDG", code) - wide,
        tensor=_count(rf"\b{chip.tensor}\b", code),
    )
    return registers, counts


def _amd_counts(kernel, chip: Chip) -> tuple[int, dict[str, int]]:
    """Registers (vector and accumulation: they share a file), and what the assembly says."""
    code = kernel.asm["amdgcn"]
    registers, vector, scalar, stack = (
        int(re.search(rf"\.{name}:\s+(\d+)", code)[1])
        for name in (
            "vgpr_count",
            "vgpr_spill_count",
            "sgpr_spill_count",
            "private_segment_fixed_size",
        )
    )
    wide = _count(r"\b(?:global|buffer)_load_dwordx4", code)
    counts = dict(
        spilled=stack + 4 * scalar,
        spills=vector + scalar,
        wide_loads=wide,
        narrow_loads=_count(r"\b(?:global|buffer)_load_", code) - wide,
        tensor=_count(rf"\b{chip.tensor}", code),
    )
    return registers, counts


def broken_rules(compiled: Compiled, variant: Variant, chip: Chip) -> list[str]:
    found = []
    if compiled.spilled or compiled.spills:
        found.append(f"spills: {compiled.spilled} bytes a thread, {compiled.spills} instructions")
    if compiled.shared > chip.block_shared:
        found.append(f"shared memory: {compiled.shared} bytes of at most {chip.block_shared}")
    if compiled.occupancy == 0:
        found.append(f"no block fits: {compiled.registers} registers, {compiled.warps} warps")
    loads = variant.streams * row_kernel.BLOCK // (4 * chip.target.warp_size * compiled.warps)
    if compiled.wide_loads < loads:
        found.append(f"128-bit loads: {compiled.wide_loads}, expected {loads}")
    if variant.tensor and not compiled.tensor:
        found.append(f"tensor cores: no {chip.tensor}")
    return found


def _attempt(variant: Variant, chip: Chip) -> dict:
    """A row of the JSON document; what a compiler raises is its result."""
    try:
        compiled = compile_variant(variant, chip)
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
        return {
            "kernel": variant.kernel,
            "variant": variant.name,
            "arch": chip.name,
            "broken": [text],
        }
    return asdict(compiled) | {"broken": broken_rules(compiled, variant, chip)}


def _cell(row: dict | None) -> str:
    if row is None or "registers" not in row:
        return "" if row is None else "FAILED"
    spilled = f"**{row['spilled']}**" if row["spilled"] else "0"
    return f"{row['registers']} / {spilled} / {row['shared']} / {row['occupancy']}"


def table(version: str, rows: list[dict]) -> str:
    """Markdown: a line per variant, a column per GPU; below it the rules that are broken."""
    chips = [chip.name for chip in CHIPS.values() if any(row["arch"] == chip.name for row in rows)]
    found = {(row["kernel"], row["variant"], row["arch"]): row for row in rows}
    names = list(dict.fromkeys((row["kernel"], row["variant"]) for row in rows))
    lines = [[*name, *(_cell(found.get((*name, chip))) for chip in chips)] for name in names]
    broken = [
        f"- {row['kernel']}[{row['variant']}] on {row['arch']}: {text}"
        for row in rows
        for text in row["broken"]
    ]
    text = markdown(f"Triton {version}", ["kernel", "variant", *chips], lines)
    return (
        text + "\n" + ("\n".join(["Broken:", *broken]) if broken else "No rule is broken.") + "\n"
    )


HEADER = f"""# Kernels compiled ahead of time

`python bench/aot.py --out bench/results/aot.md` with each version of Triton; no GPU. V {VOCABULARY}, H {HIDDEN} unless a
line says otherwise. Registers of a thread / bytes that it spills / bytes of shared memory of a block / warps at a time in a
multiprocessor (of 64 on NVIDIA GPUs, of 32 wavefronts on gfx942). Loads and tensor core instructions are in aot.json.
"""


def save(out: Path, document: dict) -> None:
    """Table and JSON, beside what other versions of Triton have there."""
    file = out.with_suffix(".json")
    known = json.loads(file.read_text()) if file.exists() else {}
    known = dict(sorted((known | {document["triton"]: document}).items()))
    file.write_text(
        json.dumps(known, indent=1).replace("\n    ", " ").replace("\n   }", " }") + "\n"
    )  # a row is a line
    out.write_text(
        "\n".join([HEADER, *(table(version, one["rows"]) for version, one in known.items())])
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--out", type=Path, help="Markdown file; JSON goes beside it")
    options = parser.parse_args()
    if triton.knobs.runtime.interpret:
        parser.error("expected TRITON_INTERPRET unset: the interpreter compiles nothing")
    warnings.simplefilter(
        "ignore"
    )  # that fusion of multiply and add will one day be off by default
    rows = []
    for variant in VARIANTS:
        for arch in options.arch:
            rows.append(_attempt(variant, CHIPS[arch]))
            print(
                f"{variant} {CHIPS[arch].name}: {_cell(rows[-1])} {'; '.join(rows[-1]['broken'])}",
                file=sys.stderr,
                flush=True,
            )
    document = {
        "triton": triton.__version__,
        "environment": environment(torch.device("cpu")),
        "rows": rows,
    }
    if options.out:
        save(options.out, document)
    print(table(triton.__version__, rows))
    print(json.dumps(document))
    return int(any(row["broken"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
