"""FSDP2 (`fully_shard`): a model's weights, gradients and optimizer state over the ranks.

Each block of the model is a unit. So is the rest: embedding, final norm and head. A unit's weights
are whole on every rank only while they are needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from srt_fast.distributed.world import World

Result = TypeVar("Result")

RUN_METHOD = "run_in_forward"
"""Name of the method of a sharded model that `run_in_forward` calls."""


def shard(model: nn.Module, world: World, *, autocast: bool) -> None:
    """Shard a model in place. Without effect in one process.

    autocast: gather weights as bfloat16. Gradients are reduced in float32 all the same.

    Gradients are sums over the ranks, not means: the loss of a micro-batch is already divided by
    the normalizer of the whole mini-batch.
    """
    if not world.is_distributed:
        return
    settings = world.settings
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
    options: dict[str, Any] = {
        "mesh": world.mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if autocast else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        ),
        "offload_policy": offload if settings.cpu_offload else OffloadPolicy(),
    }
    for block in model_blocks(model):
        fully_shard(block, reshard_after_forward=settings.reshard_after_forward, **options)
    setattr(model, RUN_METHOD, lambda function: function())
    fully_shard(model, reshard_after_forward=False, **options)  # the backward pass begins here
    register_fsdp_forward_method(model, RUN_METHOD)
    for unit in _units(model):
        unit.set_gradient_divide_factor(1.0)
        # gloo has no reduction with a factor before the sum.
        unit.set_force_sum_reduction_for_comms(True)


def run_in_forward(model: nn.Module, function: Callable[[], Result]) -> Result:
    """function(), as if it were the model's forward pass: there the root's weights are whole.

    All that reads the head's weight runs so. `unshard()` before the loss would give wrong
    gradients without an error. The function takes no arguments: FSDP would cast tensors among them.
    """
    if not isinstance(model, FSDPModule):
        return function()
    result = getattr(model, RUN_METHOD)(function)
    if not torch.is_grad_enabled():
        model.reshard()  # no backward pass will do it
    return result


@contextlib.contextmanager
def gathered_weights(model: nn.Module, world: World) -> Iterator[None]:
    """Inside, all weights are whole on every rank. Ranks may run any number of forward passes.

    Entering is collective. Without effect for a model that is not sharded.
    """
    units = _units(model)
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(
                world.settings.reshard_after_forward and unit is not model, recurse=False
            )


def model_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers never splits over devices: the model's blocks.

    Raises ValueError if there are none.
    """
    names = set(getattr(model, "_no_split_modules", None) or [])
    # A sharded block has a class that FSDP derives from the block's own.
    blocks = [
        module
        for module in model.modules()
        if not names.isdisjoint(cls.__name__ for cls in type(module).__mro__)
    ]
    if not blocks:
        raise ValueError(
            f"model {type(model).__name__}: expected _no_split_modules to name its blocks, which "
            f"sharding and model.compile need, got {sorted(names)}"
        )
    return blocks


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or the tensor itself. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, or the tensor itself. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weight(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The whole of a sharded tensor, cast before it is gathered, or the tensor itself. Collective.

    dtype: of floating-point tensors. None: as they are.
    """
    if isinstance(tensor, DTensor) and dtype is not None and tensor.is_floating_point():
        return full_tensor(tensor.to(dtype))
    return full_tensor(tensor)


@torch.no_grad()
def copy_whole(whole: Tensor, tensor: Tensor) -> None:
    """Copy a whole tensor, the same on all ranks, into a tensor that may be sharded. Local."""
    if isinstance(tensor, DTensor):
        whole = distribute_tensor(
            whole.to(tensor.to_local().device),
            tensor.device_mesh,
            tensor.placements,
            src_data_rank=None,  # no communication
        ).to_local()
    local_part(tensor).copy_(whole)


def _units(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
