"""Checks of arguments: ValueError with the argument's name, what was expected and what was got."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def expect(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError that names the argument unless `holds`."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],
    dtypes: tuple[torch.dtype, ...] | Literal["float"],
    device: torch.device,
) -> None:
    """Check an argument's shape (None: any size), dtype ("float": one of FLOATS) and device."""
    expect(isinstance(tensor, Tensor), name, "a tensor", type(tensor).__name__)
    fits = tensor.dim() == len(shape) and all(
        expected in (None, size) for expected, size in zip(shape, tensor.shape, strict=True)
    )
    expect(fits, name, f"shape {list(shape)}".replace("None", "any"), list(tensor.shape))
    allowed = FLOATS if dtypes == "float" else dtypes
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
    expect(tensor.dtype in allowed, name, f"dtype {names}", tensor.dtype)
    expect(tensor.device == device, name, f"device {device}", tensor.device)


def check_range(name: str, index: Tensor, size: int) -> None:
    """Check that values are in [0, size).

    A bad value is a ValueError on a CPU. On other devices it is an assertion on the device, because
    reading it would synchronise with the host.
    """
    if index.numel() == 0:
        return
    if index.device.type == "cpu":
        low, high = index.aminmax()
        is_inside = bool(low >= 0 and high < size)
        expect(is_inside, name, f"values in [0, {size})", f"{low.item()} to {high.item()}")
    else:
        is_inside = ((index >= 0) & (index < size)).all()
        _assert_on_device(is_inside, f"{name}: expected values in [0, {size})")


def check_values_on_cpu(name: str, is_valid: Tensor, values: Tensor, expected: str) -> None:
    """Raise ValueError that names the first of the CPU tensor values [N] that is not valid.

    Nothing is checked on other devices, where looking would synchronise with the host.
    """
    if values.device.type != "cpu" or bool(is_valid.all()):
        return
    index = int((~is_valid).nonzero()[0, 0])
    expect(False, name, expected, f"{float(values[index])} at index {index}")


def count_distinct(index: Tensor, size: int) -> Tensor:
    """0-dim int64: how many different values index [N] has. They are in [0, size).

    Does not synchronise with the host.
    """
    is_there = torch.zeros(size, dtype=torch.bool, device=index.device)
    return is_there.index_fill_(0, index, True).sum()


def check_distinct(name: str, index: Tensor, size: int) -> None:
    """Check that no value of index [N], in [0, size), is there twice.

    Bad values raise as in check_range.
    """
    is_distinct = count_distinct(index, size) == len(index)
    if index.device.type == "cpu":
        expect(bool(is_distinct), name, "no value twice", "one that repeats")
    else:
        _assert_on_device(is_distinct, f"{name}: expected no value twice")


def check_offsets(name: str, offsets: Tensor, total: int, device: torch.device) -> None:
    """Check offsets [S+1] int32 or int64: they go from 0 to total and never decrease.

    Bad values raise as in check_range.
    """
    check_tensor(name, offsets, (None,), (torch.int32, torch.int64), device)
    expect(len(offsets) >= 1, name, "at least one element", "none")
    if device.type == "cpu":
        expect(offsets[0].item() == 0, name, "0 first", offsets[0].item())
        expect(offsets[-1].item() == total, name, f"{total} last", offsets[-1].item())
        expect(bool((offsets.diff() >= 0).all()), name, "no decrease", offsets.tolist())
    else:
        is_valid = (offsets[0] == 0) & (offsets[-1] == total) & (offsets.diff() >= 0).all()
        _assert_on_device(is_valid, f"{name}: expected 0 first, {total} last and no decrease")


def _assert_on_device(condition: Tensor, message: str) -> None:
    torch._assert_async(condition, message)  # pyright: ignore[reportPrivateImportUsage]


def check_tensors(device: torch.device | None = None, **tensors: object) -> None:
    """Check that arguments are tensors (or None) on one device.

    The dispatch of an op would report this in its own words, or not at all.
    """
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        device = tensor.device if device is None else device
        expect(tensor.device == device, name, f"device {device}", tensor.device)
