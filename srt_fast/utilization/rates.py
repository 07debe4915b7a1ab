"""What the device reaches: the rate of its matrix products, and the bandwidth of its memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from srt_fast.distributed.world import World

ROWS = 4096
"""Rows of the measured product."""
LARGEST_COPY = 2**28
"""Bytes that the measured copy reads and writes at most."""
SECONDS = 0.25
"""Time of each of the two measurements."""


@dataclass(frozen=True, kw_only=True)
class DeviceRates:
    """Measured rates, summed over the ranks."""

    flops: float  # FLOPs a second of a matrix product
    bandwidth: float  # bytes a second that a copy reads and writes
    device: str  # its name
    product: str  # what was measured: "bfloat16 [4096, 576] x [576, 1536]"


def measure_rates(
    matrix: tuple[int, int],
    weights: int,
    dtype: torch.dtype,
    device: torch.device,
    world: World,
) -> DeviceRates:
    """Medians of what this device reaches now. Takes about 2 SECONDS. Collective.

    matrix: (rows, columns) of a weight, which up to ROWS tokens are multiplied with. A slow device
    gets fewer tokens. weights: elements that decoding reads in a step. The copy moves as many
    bytes, at most LARGEST_COPY: weights that fit into a cache are read from there.
    """
    world.barrier()  # ranks measure at the same time: they may share a machine
    rows = _rows_in_time(matrix, dtype, device)
    seconds = _seconds_of_product(rows, matrix, dtype, device, SECONDS)
    flops = 2 * rows * matrix[0] * matrix[1] / seconds
    size = max(1, min(weights * dtype.itemsize, LARGEST_COPY) // 2)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * size / _median_seconds(lambda: target.copy_(source), device, SECONDS)
    measured = world.gather((flops, bandwidth))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    count = f"{world.size} x " if world.is_distributed else ""
    dtype_name = str(dtype).removeprefix("torch.")
    return DeviceRates(
        flops=sum(flops for flops, _ in measured),
        bandwidth=sum(bandwidth for _, bandwidth in measured),
        device=f"{count}{name}",
        product=f"{dtype_name} [{rows}, {matrix[1]}] x [{matrix[1]}, {matrix[0]}]",
    )


def _rows_in_time(matrix: tuple[int, int], dtype: torch.dtype, device: torch.device) -> int:
    """ROWS, or fewer if a product of so many takes more than a fraction of SECONDS."""
    rows = ROWS // 64
    while rows < ROWS and _seconds_of_product(rows, matrix, dtype, device, 0) < SECONDS / 32:
        rows *= 4
    return rows


def _seconds_of_product(
    rows: int,
    matrix: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    budget: float,
) -> float:
    generator = torch.Generator(device).manual_seed(0)  # the run's random numbers stay
    tokens = torch.randn(rows, matrix[1], generator=generator, device=device).to(dtype)
    weight = torch.randn(matrix, generator=generator, device=device).to(dtype)
    return _median_seconds(lambda: torch.nn.functional.linear(tokens, weight), device, budget)


def _median_seconds(function: Callable[[], object], device: torch.device, budget: float) -> float:
    """Seconds of a call: the median of samples that take `budget` seconds, and at least three.

    A sample has as many calls as take a sixteenth of the budget: then starting them counts little.
    """
    function()  # warms up
    one_call = max(_seconds_of(function, 1, device), 1e-6)
    calls = max(1, int(budget / 16 / one_call))
    samples: list[float] = []
    while len(samples) < 3 or sum(samples) * calls < budget:
        samples.append(_seconds_of(function, calls, device) / calls)
    return statistics.median(samples)


def _seconds_of(function: Callable[[], object], calls: int, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
