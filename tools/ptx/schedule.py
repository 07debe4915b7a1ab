"""The order of warps between barriers, and when asynchronous work is done.

Hardware may take any order. These three are far from each other: what a kernel writes must be the
same bits under all of them. A missing barrier or wait shows under one or another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """warps: all step together; or each runs to its next barrier, the first one or the last one
    first.

    late: asynchronous work is done at the wait that needs it. Else where it is issued.
    """

    name: str
    warps: Literal["together", "forward", "reverse"]
    late_copies: bool
    late_products: bool

    def __str__(self) -> str:
        return self.name


LOCKSTEP = Schedule("lockstep", "together", late_copies=True, late_products=True)
FORWARD = Schedule("forward", "forward", late_copies=False, late_products=True)
REVERSE = Schedule("reverse", "reverse", late_copies=True, late_products=False)
SCHEDULES = (LOCKSTEP, FORWARD, REVERSE)
