"""setp compares, selp selects."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptx.blocks import Mask, Unit
from ptx.operands import Step, is_float, reader, writer
from ptx.program import Instruction

Comparison = Callable[[NDArray, NDArray], NDArray]
ORDERED: dict[str, Comparison] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def compare(instruction: Instruction) -> Step:
    """An instruction as `setp.lt.f32 %p1, %r1, %r2`."""
    if len(instruction.parts) != 3 or len(instruction.operands) != 3:
        raise instruction.unknown()
    function = _comparison(instruction)
    target, *operands = instruction.operands
    x, y = [reader(instruction, operand, instruction.type) for operand in operands]
    write = writer(instruction, target)

    def step(unit: Unit, mask: Mask) -> None:
        write(unit, mask, function(x(unit), y(unit)))

    return step


def _comparison(instruction: Instruction) -> Comparison:
    """Of floats: false with a nan, or true with the suffix u. num and nan ask for nans only."""
    name = instruction.parts[1]
    if not is_float(instruction.type):
        if name not in ORDERED:
            raise instruction.unknown()
        return ORDERED[name]
    if name == "num":
        return lambda x, y: ~_has_nan(x, y)
    if name == "nan":
        return _has_nan
    if name in ORDERED:
        return lambda x, y: ORDERED[name](x, y) & ~_has_nan(x, y)
    if name.endswith("u") and name[:-1] in ORDERED:
        return lambda x, y: ORDERED[name[:-1]](x, y) | _has_nan(x, y)
    raise instruction.unknown()


def _has_nan(x: NDArray, y: NDArray) -> NDArray:
    return np.isnan(x) | np.isnan(y)


def select(instruction: Instruction) -> Step:
    """`selp.f32 %r1, %r2, %r3, %p1`: the first one where the predicate is true."""
    target, first, second, predicate = instruction.operands
    x, y = [reader(instruction, operand, instruction.type) for operand in (first, second)]
    condition = reader(instruction, predicate, "pred")
    write = writer(instruction, target)

    def step(unit: Unit, mask: Mask) -> None:
        write(unit, mask, np.where(condition(unit), x(unit), y(unit)))

    return step
