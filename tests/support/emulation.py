"""What tests share that run kernels in the emulator of tools/ptx: cases, runs, and their errors.

SRT_PTX=all takes every case in each type on each chip, under each schedule. By default every case
runs in bf16 on sm_90, and the first one in the other types and on the other chip, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from compiled.chips import CHIPS
from ptx.launch import emulated
from ptx.schedule import LOCKSTEP, REVERSE, SCHEDULES, Schedule
from srt_kernels.testing import relative_error
from support.bounds import NAMES, assert_rounded, assert_within

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ARCHS = ("90", "80")
HAS_ALL = os.environ.get("SRT_PTX") == "all"
CHOSEN = SCHEDULES if HAS_ALL else (LOCKSTEP, REVERSE)


def grid(cases: Iterable[str], dtypes: Iterable[str] = DTYPES) -> pytest.MarkDecorator:
    """Parameters case, dtype (a name) and arch of a test."""
    every = [(case, dtype, arch) for case in cases for dtype in dtypes for arch in ARCHS]
    first_case, first_dtype, first_arch = every[0]
    chosen = [
        each
        for each in every
        if HAS_ALL or each[0] == first_case or each[1:] == (first_dtype, first_arch)
    ]
    return pytest.mark.parametrize("case, dtype, arch", chosen)


def run_emulated(
    op: Callable[[], list[Tensor]], arch: str, schedules: tuple[Schedule, ...] = CHOSEN
) -> tuple[list[Tensor], list[str]]:
    """The op's tensors, and the kernels that it launched.

    It runs under each schedule, and every one gives the same bits.
    """
    results: list[Tensor] = []
    kernels: set[str] = set()
    for schedule in schedules:
        with emulated(CHIPS[arch], schedule) as launches:
            other = op()
        results = results or other
        kernels.update(launches)
        for number, pair in enumerate(zip(results, other, strict=True)):
            assert has_same_bits(*pair), f"{schedule}: other bits of result {number}"
    assert kernels, "no kernel was launched"
    return results, sorted(kernels)


def has_same_bits(tensor: Tensor, other: Tensor) -> bool:
    """Equal, nan included."""
    left, right = [t.detach().reshape(-1).contiguous().view(torch.uint8) for t in (tensor, other)]
    return torch.equal(left, right)


@dataclass(frozen=True)
class Errors:
    """Checks results against bounds, and keeps their errors in the report of the test.

    record: pytest's record_property. tools/ptx_table.py makes a table of the reports.
    """

    record: Callable[[str, object], None]
    op: str
    kernels: list[str]
    dtype: str
    arch: str

    def _keep(self, quantity: str, error: float) -> None:
        row = dict(op=self.op, kernels=self.kernels, dtype=self.dtype, arch=self.arch)
        self.record("ptx", json.dumps(row | dict(quantity=quantity, error=error)))

    def check(self, name: str, actual: Tensor, expected: Tensor, bound: Tensor | float) -> None:
        """Keeps the largest error."""
        assert_within(name, actual, expected, bound)
        errors = (actual.detach().double() - expected.detach().double()).abs().nan_to_num()
        self._keep(f"{name}, absolute", errors.max().item())

    def check_gradient(
        self, name: str, actual: Tensor, expected: Tensor, bound: Tensor | float
    ) -> None:
        """Keeps the relative error of the norm."""
        assert_within(name, actual, expected, bound)
        self._keep(f"{name}, relative", relative_error(actual, expected))

    def check_gradients(
        self,
        actual: Iterable[Tensor],
        exact: Iterable[tuple[Tensor, float]],
        bounds: Iterable[Tensor],
    ) -> None:
        """dhidden and dweight. exact, bounds: rounded_gradients and gradients of HeadBounds.

        Keeps relative errors, and of half types what rounding alone comes to.
        """
        for name, gradient, (expected, rounding), bound in zip(
            NAMES, actual, exact, bounds, strict=False
        ):
            if self.dtype == "fp32":
                self.check_gradient(name, gradient, expected, bound)
                continue
            assert_rounded(name, gradient, expected, rounding, bound)
            self._keep(f"{name}, relative", relative_error(gradient, expected))
            self._keep(f"{name}, of its rounding alone", rounding)

    def check_equal(self, name: str, actual: Tensor, expected: Tensor) -> None:
        """Keeps how many elements differ: none."""
        assert torch.equal(actual, expected), f"{name}: {actual} is not {expected}"
        self._keep(f"{name}, wrong elements", 0.0)
