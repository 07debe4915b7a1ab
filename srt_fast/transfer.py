"""Copies between host and device: many tensors in one copy.

A host sync is a wait of the host for the device. `fetch` is one, `send` is none. The page on
kernels lists what waits in a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16  # int64 values: each tensor of a copy begins where 128 bytes begin


def fetch(*tensors: Tensor) -> list[Tensor]:
    """The tensors in host memory. One host sync and one copy for all of them.

    Takes bool, integer and floating types. The values are exact.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.detach() for tensor in tensors]
    words = torch.cat([_as_words(tensor) for tensor in tensors]).cpu()
    parts = words.split([tensor.numel() for tensor in tensors])
    return [_from_words(part, tensor) for part, tensor in zip(parts, tensors, strict=True)]


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of host memory on `device`. One copy, for which the host does not wait.

    Takes bool, integer and floating types. The values are exact.
    """
    if device.type == "cpu":
        return list(tensors)
    sizes = [-(-tensor.numel() // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    buffer = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=True)
    for part, tensor in zip(buffer.split(sizes), tensors, strict=True):
        part[: tensor.numel()] = _as_words(tensor)
    parts = buffer.to(device, non_blocking=True).split(sizes)
    return [
        _from_words(part[: tensor.numel()], tensor)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


def _as_words(tensor: Tensor) -> Tensor:
    """[n] int64: the values of integers, the bits of floats as float64."""
    flat = tensor.detach().flatten()
    return flat.double().view(torch.int64) if flat.is_floating_point() else flat.long()


def _from_words(words: Tensor, like: Tensor) -> Tensor:
    """The inverse of _as_words, with type and shape of `like`."""
    values = words.view(torch.float64) if like.is_floating_point() else words
    return values.to(like.dtype).view(like.shape)
