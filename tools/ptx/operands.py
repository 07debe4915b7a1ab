"""Operands of instructions: functions that read and write them for the threads of a unit."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptx.blocks import Mask, Unit
from ptx.memory import UINTS
from ptx.program import Instruction

Reader = Callable[[Unit], NDArray]
Writer = Callable[[Unit, Mask, NDArray], None]
Step = Callable[[Unit, Mask], None]

DTYPES = {
    **{f"{kind}{8 * size}": dtype for size, dtype in UINTS.items() for kind in "bu"},
    **{"s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64},
    **{"f16": np.float16, "f32": np.float32, "f64": np.float64, "pred": np.bool_},
}
# By the register's name. The longer prefix comes first.
REGISTERS = {"%rs": np.uint16, "%rd": np.uint64, "%r": np.uint32, "%p": np.bool_}
IGNORED = "_"  # a destination


def dtype_of(instruction: Instruction, kind: str) -> type[np.generic]:
    """numpy's type of a PTX type. bf16 is float32: see reader."""
    if kind == "bf16":
        return np.float32
    if kind not in DTYPES:
        raise instruction.unknown()
    return DTYPES[kind]


def bytes_of(instruction: Instruction, kind: str) -> int:
    return np.dtype(dtype_of(instruction, kind)).itemsize


def is_float(kind: str) -> bool:
    return kind in ("f16", "bf16", "f32", "f64")


def bf16_to_float32(bits: NDArray) -> NDArray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bf16(values: NDArray) -> NDArray:
    """Round to the nearest, ties to even. nan is 0x7FFF, as on NVIDIA GPUs."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def reader(instruction: Instruction, operand: str, kind: str) -> Reader:
    """A function that gives the operand of each thread of a unit, in the PTX type `kind`.

    bf16 comes as float32: the numbers are the same.
    """
    if kind == "bf16":
        read = reader(instruction, operand, "b16")
        return lambda unit: bf16_to_float32(read(unit))
    dtype = dtype_of(instruction, kind)
    if operand.startswith("!"):
        read = reader(instruction, operand[1:], kind)
        return lambda unit: ~read(unit)
    if re.fullmatch(r"%(tid|ntid|ctaid|nctaid)\.[xyz]|%laneid", operand):
        return lambda unit: unit.blocks.special[operand][unit.part].astype(dtype)
    if operand.startswith("%"):
        return _register_reader(instruction, operand, dtype)
    if re.fullmatch(r"\w+_param_\d+", operand):  # a descriptor: its number stands for its address
        return lambda unit: np.full(unit.size, dtype(int(unit.blocks.parameters[operand])))
    value = _number(instruction, operand, dtype)
    return lambda unit: np.full(unit.size, value)


def _register_reader(instruction: Instruction, operand: str, dtype: type[np.generic]) -> Reader:
    own = _register_dtype(instruction, operand)
    size = np.dtype(dtype).itemsize
    own_size = np.dtype(own).itemsize
    if size > own_size or (dtype is np.bool_) != (own is np.bool_):
        raise instruction.unknown()
    if size == own_size:
        return lambda unit: unit.blocks.registers[operand][unit.part].view(dtype)
    narrow = UINTS[size]
    return lambda unit: unit.blocks.registers[operand][unit.part].astype(narrow).view(dtype)


def _register_dtype(instruction: Instruction, operand: str) -> type[np.generic]:
    for prefix, dtype in REGISTERS.items():
        if re.fullmatch(rf"{prefix}\d+", operand):
            return dtype
    raise instruction.unknown()


def _number(instruction: Instruction, operand: str, dtype: type[np.generic]) -> np.generic:
    if operand == "global_smem":
        return dtype(0)
    if re.fullmatch(r"0f[0-9A-Fa-f]{8}", operand):
        return _view(np.uint32(int(operand[2:], 16)), dtype)
    if re.fullmatch(r"0d[0-9A-Fa-f]{16}", operand):
        return _view(np.uint64(int(operand[2:], 16)), dtype)
    if not re.fullmatch(r"-?(\d+|0x[0-9A-Fa-f]+)", operand):
        raise instruction.unknown()
    value = int(operand, 0)
    if dtype is np.bool_:
        return np.bool_(value != 0)
    size = np.dtype(dtype).itemsize
    return _view(UINTS[size](value & ((1 << 8 * size) - 1)), dtype)


def _view(bits: np.generic, dtype: type[np.generic]) -> np.generic:
    return np.frombuffer(bits.tobytes(), dtype)[0]


def writer(instruction: Instruction, operand: str) -> Writer:
    """A function that writes a register of the active threads, zero-extended or truncated.

    Signed values are sign-extended.
    """
    if operand == IGNORED:
        return lambda unit, mask, values: None
    own = np.dtype(_register_dtype(instruction, operand))

    def write(unit: Unit, mask: Mask, values: NDArray) -> None:
        registers = unit.blocks.registers
        if operand not in registers:
            registers[operand] = np.zeros(len(unit.blocks.position), own)
        values = _to_register(values, own)
        np.copyto(registers[operand][unit.part], values, where=True if mask is None else mask)

    return write


def _to_register(values: NDArray, own: np.dtype) -> NDArray:
    if values.dtype == own:
        return values
    if values.dtype.itemsize == own.itemsize:
        return values.view(own)
    if values.dtype.kind == "f":
        values = values.view(UINTS[values.dtype.itemsize])
    return values.astype(own)


def vector(operand: str) -> list[str]:
    """The operands in braces, or the one without."""
    return [part.strip() for part in operand.strip("{} ").split(",")]


def readers(instruction: Instruction, operand: str, kind: str) -> list[Reader]:
    return [reader(instruction, part, kind) for part in vector(operand)]


def writers(instruction: Instruction, operand: str) -> list[Writer]:
    return [writer(instruction, part) for part in vector(operand)]


def address(instruction: Instruction, operand: str) -> Reader:
    """A function that gives the address of each thread, int64, of `[%rd1 + 16]`."""
    match = re.fullmatch(r"\[ ?([%\w]+)(?: ?\+ ?(-?\w+))? ?\]", operand)
    if match is None:
        raise instruction.unknown()
    base, offset = match[1], int(match[2] or "0", 0)
    read = reader(instruction, base, "u64" if base.startswith("%rd") else "u32")
    return lambda unit: read(unit).astype(np.int64) + offset
