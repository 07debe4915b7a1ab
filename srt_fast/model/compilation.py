"""torch.compile of a model's blocks (model.compile)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from srt_fast.distributed.sharding import model_blocks
from srt_fast.errors import first_line

Forward = Callable[..., Any]


def compile_blocks(model: nn.Module) -> None:
    """Compile the packed forward pass of each block, in place.

    The first pass compiles. Blocks of one class share their graphs. Sizes are symbols in them, so
    that other lengths need no other graphs.

    Only the blocks' own forward functions are compiled, not their hooks: FSDP and the recomputing
    of activations work as without it.
    """
    for block in model_blocks(model):
        block.forward = _compile_packed(block.forward)


def check_compiler(setting: str, device: torch.device) -> None:
    """Raise ValueError that names the setting if torch.compile does not work on this device."""
    try:
        torch.compile(_double)(torch.ones(2, device=device))
    except RuntimeError as error:  # all errors of torch.compile are
        cause = first_line(getattr(error, "inner_exception", error))
        raise ValueError(
            f"{setting}: expected torch.compile to work on {device.type!r}, got: {cause}"
        ) from error


def _double(values: torch.Tensor) -> torch.Tensor:
    return 2 * values


def _compile_packed(forward: Forward) -> Forward:
    """A block's forward function that is compiled for packed sequences only.

    With a KV cache it runs uncompiled: the number of a layer would be a constant of its graphs, so
    each layer would compile its own.
    """
    compiled = torch.compile(forward, dynamic=True)

    @functools.wraps(forward)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        is_packed = kwargs.get("cu_seq_lens_q") is not None
        return (compiled if is_packed else forward)(*args, **kwargs)

    return dispatch
