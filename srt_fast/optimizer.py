"""The policy's optimizer (train.optimizer)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from srt_fast.config import TrainConfig
from srt_fast.distributed.sharding import local_part
from srt_fast.model.compilation import check_compiler

State = dict[str, Any]


def make_optimizer(parameters: Iterable[Tensor], train: TrainConfig) -> Optimizer:
    """AdamW of the kind train.optimizer. Its state_dict has plain tensors and floats only.

    Raises ValueError if "adamw_8bit" lacks torchao or a compiler.
    """
    options: dict[str, Any] = {
        "lr": train.lr,
        "betas": train.betas,
        "weight_decay": train.weight_decay,
    }
    if train.optimizer == "adamw_8bit":
        return _make_adamw_8bit(list(parameters), options)
    return AdamW(parameters, fused=train.optimizer == "adamw_fused" or None, **options)


# torchao's AdamW8bit keeps exp_avg and exp_avg_sq as codes of 8 bits, and a float32 scale for each
# 256 of them. Tensors of less than 4096 values on this rank, or of no multiple of 256, stay
# float32. In a state_dict all of it is float32: other programs read it, and a resumed run may have
# other shards, thus other blocks of 256.


def _make_adamw_8bit(parameters: list[Tensor], options: dict[str, Any]) -> Optimizer:
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(
            "train.optimizer: expected the package torchao for 'adamw_8bit', got none: "
            "pip install 'srt-fast[optim]'"
        )
    check_compiler("train.optimizer", parameters[0].device)
    # Imported here because the package is optional.
    from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

    optimizer = AdamW8bit(parameters, **options)
    for group in optimizer.param_groups:
        group["lr"] = options["lr"]  # torchao has rounded it to float32
    optimizer.register_step_pre_hook(_give_lr_as_tensor)
    optimizer.register_step_post_hook(_give_lr_as_float)
    optimizer.register_state_dict_post_hook(_dequantize_state)
    optimizer.register_load_state_dict_pre_hook(_quantize_state)
    return optimizer


def _give_lr_as_tensor(optimizer: Optimizer, *_: Any) -> None:
    """torchao compiles its step. A float would be a constant there."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)  # holds the float exactly


def _give_lr_as_float(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = float(group["lr"])


def _dequantize_state(optimizer: Optimizer, state_dict: State) -> State:
    """The state_dict with float32 in place of 8 bits, in host memory."""
    state = {
        index: {key: _dequantize(value) for key, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _quantize_state(optimizer: Any, state_dict: State) -> State:
    """The inverse of _dequantize_state."""
    indices = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    state = {}
    for index, parameter in zip(indices, parameters, strict=True):
        if index not in state_dict["state"]:
            continue  # it has not been updated yet
        values = state_dict["state"][index]
        state[index] = {
            key: _quantize(value, optimizer._new_buffer(parameter, signed=key == "exp_avg"))
            if value.ndim
            else value
            for key, value in values.items()
        }
    return {**state_dict, "state": state}


@torch.no_grad()
def _dequantize(value: Tensor) -> Tensor:
    """A state as a float32 tensor that quantizes to the same bits, in host memory.

    A block's largest value is 1 in units of the scale. If it is negative, its code stands for
    -0.993. As such it would give the block another scale, so it becomes -1 here. The other codes
    are further apart than rounding moves them.
    """
    from torchao.optim.subclass_8bit import (  # pyright: ignore[reportMissingImports]
        OptimState8bit,
    )

    codes: Any = local_part(value)
    if not isinstance(codes, OptimState8bit):
        return value
    code_values = codes.qmap.clone()
    if codes.signed:
        code_values[0] = -1.0
    plain = OptimState8bit(codes.codes, codes.scale, code_values, codes.signed).dequantize()
    if isinstance(value, DTensor):
        plain = DTensor.from_local(
            plain,
            value.device_mesh,
            value.placements,
            run_check=False,
            shape=value.shape,
            stride=value.stride(),
        )
    return plain.cpu()


@torch.no_grad()
def _quantize(value: Tensor, buffer: Tensor) -> Tensor:
    """The buffer, with the value."""
    local = local_part(buffer)
    local.copy_(local_part(value).to(local.device))
    return buffer
