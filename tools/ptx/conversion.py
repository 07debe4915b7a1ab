"""cvt: from one type to another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptx.blocks import Mask, Unit
from ptx.operands import Step, dtype_of, float32_to_bf16, is_float, reader, writer
from ptx.program import Instruction

PAIRS = {"bf16x2": "bf16", "f16x2": "f16"}


def convert(instruction: Instruction) -> Step:
    """An instruction as `cvt.rn.f32.s32 %r1, %r2`. Rounds to nearest; never a float to an int."""
    *modifiers, target_kind, source_kind = instruction.parts[1:]
    if set(modifiers) - {"rn"} or is_float(source_kind) > is_float(target_kind.partition("x")[0]):
        raise instruction.unknown()
    target, *operands = instruction.operands
    write = writer(instruction, target)
    read = [reader(instruction, operand, source_kind) for operand in operands]
    if target_kind in PAIRS:
        return _pair_step(instruction, PAIRS[target_kind], read, write)
    [source] = read

    def step(unit: Unit, mask: Mask) -> None:
        write(unit, mask, _to(instruction, source(unit), target_kind))

    return step


def _pair_step(instruction: Instruction, kind: str, read, write) -> Step:
    """Two floats of 32 bits become the halves of a register. The first one is the upper half."""
    upper, lower = read

    def step(unit: Unit, mask: Mask) -> None:
        high, low = [
            _to(instruction, half(unit), kind).view(np.uint16).astype(np.uint32)
            for half in (upper, lower)
        ]
        write(unit, mask, (high << np.uint32(16)) | low)

    return step


def _to(instruction: Instruction, values: NDArray, kind: str) -> NDArray:
    if kind != "bf16":
        return values.astype(dtype_of(instruction, kind))
    if values.dtype != np.float32:  # fp64 would be rounded twice
        raise instruction.unknown()
    return float32_to_bf16(values)
