"""Checks of arguments: ValueError with the argument's name, what was expected and what was got."""

from __future__ import annotations

from types import NoneType

import torch
import torch.distributed as dist
from torch import Tensor


def expect(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError that names the argument unless `holds`."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple | str,
    device: torch.device,
):
    """Shape (None: any size), dtype ("float": any floating type) and device of an argument."""
    expect(isinstance(tensor, Tensor), name, "a tensor", type(tensor).__name__)
    fits = tensor.dim() == len(shape) and all(
        e in (None, s) for e, s in zip(shape, tensor.shape, strict=True)
    )
    expect(fits, name, f"shape {list(shape)}".replace("None", "any"), list(tensor.shape))
    fits = tensor.is_floating_point() if dtypes == "float" else tensor.dtype in dtypes
    expect(fits, name, f"dtype {dtypes}", tensor.dtype)
    expect(tensor.device == device, name, f"device {device}", tensor.device)


def check_range(name: str, index: Tensor, size: int) -> None:
    """Values in [0, size). A ValueError on a CPU; elsewhere an assertion on the device, as a look would be a host sync."""
    if index.numel() == 0:
        return
    if index.device.type == "cpu":
        low, high = (bound.item() for bound in index.aminmax())
        expect(low >= 0 and high < size, name, f"values in [0, {size})", f"{low} to {high}")
    else:
        torch._assert_async(
            ((index >= 0) & (index < size)).all(), f"{name}: expected values in [0, {size})"
        )


def check_offsets(name: str, offsets: Tensor, total: int, device: torch.device) -> None:
    """[S+1] int32 or int64, from 0 to total, never decreasing. Values as in check_range."""
    check_tensor(name, offsets, (None,), (torch.int32, torch.int64), device)
    expect(len(offsets) >= 1, name, "at least one element", "none")
    if device.type == "cpu":
        expect(offsets[0].item() == 0, name, "0 first", offsets[0].item())
        expect(offsets[-1].item() == total, name, f"{total} last", offsets[-1].item())
        expect(bool((offsets.diff() >= 0).all()), name, "no decrease", offsets.tolist())
    else:
        good = (offsets[0] == 0) & (offsets[-1] == total) & (offsets.diff() >= 0).all()
        torch._assert_async(good, f"{name}: expected 0 first, {total} last and no decrease")


def check_tensors(device: torch.device | None = None, **tensors: object) -> None:
    """What an op's dispatch would refuse in words of its own, or not at all: tensors (or None), on one device."""
    for name, tensor in tensors.items():
        if tensor is not None:
            expect(isinstance(tensor, Tensor), name, "a tensor", type(tensor).__name__)
            device = tensor.device if device is None else device
            expect(tensor.device == device, name, f"device {device}", tensor.device)


def check_settings(temperature: object, softcap: object, chunk_rows: object, group: object) -> None:
    """Types of a head's settings; make_head checks their values."""
    for name, value, kinds, expected in (
        ("temperature", temperature, (int, float), "a number"),
        ("softcap", softcap, (int, float, NoneType), "a number or None"),
        ("chunk_rows", chunk_rows, (int, NoneType), "an int or None"),
        ("group", group, (dist.ProcessGroup, NoneType), "a torch.distributed.ProcessGroup or None"),
    ):
        expect(isinstance(value, kinds), name, expected, type(value).__name__)
