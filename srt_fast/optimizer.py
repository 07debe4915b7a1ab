"""The policy's optimizer (train.optimizer), and the gradient norm before its step."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from srt_fast.config import TrainConfig
from srt_fast.distributed.sharding import full_tensor, local_part
from srt_fast.distributed.world import World
from srt_fast.errors import CheckpointError
from srt_fast.model.compilation import check_compiler
from srt_fast.transfer import fetch

State = dict[str, Any]


def make_optimizer(parameters: Iterable[Tensor], train: TrainConfig) -> Optimizer:
    """AdamW of the kind train.optimizer. Its state_dict has plain tensors and floats only.

    Frozen parameters are left out.

    bfloat16 parameters have float32 master weights. Raises ValueError if "adamw_8bit" lacks torchao
    or a compiler.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    options: dict[str, Any] = {
        "lr": train.lr,
        "betas": train.betas,
        "weight_decay": train.weight_decay,
    }
    is_narrow = any(parameter.dtype == torch.bfloat16 for parameter in parameters)
    if train.optimizer == "adamw_8bit":
        assert not is_narrow, "the configuration refuses it"
        return _make_adamw_8bit(parameters, options)
    is_fused = train.optimizer == "adamw_fused" or parameters[0].device.type == "cuda"
    kind = MasterAdamW if is_narrow else AdamW
    return kind(parameters, fused=is_fused or None, **options)


def clip_gradients(
    model: nn.Module, largest_norm: float, world: World, also: Iterable[Tensor] = ()
) -> tuple[float, list[Tensor]]:
    """Scale the gradients down to a norm of at most `largest_norm`. Returns the norm before.

    Also returns the tensors `also` in host memory: one host sync reads them all. Collective. Raises
    ValueError for a norm that is not finite, before anything has changed. It names the first weight
    that is not finite, else the first gradient.
    """
    parameters = list(model.parameters())
    total_norm = get_total_norm([gradient for p in parameters if (gradient := p.grad) is not None])
    norm_on_host, *read = fetch(full_tensor(total_norm), *also)
    norm = norm_on_host.item()
    if not math.isfinite(norm):
        raise ValueError(
            f"{_first_not_finite(model, world)}: expected finite values, got a gradient norm of "
            f"{norm}; the last checkpoint is unharmed"
        )
    clip_grads_with_norm_(parameters, largest_norm, total_norm)
    return norm, read


def _first_not_finite(model: nn.Module, world: World) -> str:
    """The first tensor with a value that is not finite, on any rank. Collective."""
    named = list(model.named_parameters())
    tensors = [(f"weight of {name}", parameter) for name, parameter in named]
    tensors += [(f"gradient of {name}", parameter.grad) for name, parameter in named]
    of_rank = [
        place
        for place, (_, tensor) in enumerate(tensors)
        if tensor is not None and not local_part(tensor.detach()).isfinite().all()
    ]
    places = list(chain.from_iterable(world.gather(of_rank[:1])))
    return tensors[min(places)][0] if places else "sum of the gradients' squares"


class MasterAdamW(AdamW):
    """AdamW that updates a float32 copy of each parameter, and rounds the copy to the parameter.

    bfloat16 has 8 bits: alone it would lose a step of less than 1/512 of a weight. The copy,
    "master" in the state, is sharded, saved and loaded as the moments are. They are float32 too.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of each parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def load_state_dict(self, state_dict: State) -> None:
        """As AdamW's, which would round the state to the parameters' dtype.

        Raises CheckpointError for a state without master weights.
        """
        super().load_state_dict({**state_dict, "state": {}})
        for _, parameter, values in _states(self, state_dict):
            if "master" not in values:
                raise CheckpointError(
                    "optimizer: expected float32 master weights of the bfloat16 parameters, "
                    "got a checkpoint without them"
                )
            device = parameter.device
            self.state[parameter] = {key: value.to(device) for key, value in values.items()}

    def _update(self, parameter: Tensor, group: State) -> None:
        state = self.state[parameter]
        if not state:
            master = parameter.detach().to(torch.float32, copy=True)
            state["step"] = torch.zeros((), device=master.device)
            state["master"] = master
            state["exp_avg"] = torch.zeros_like(master)
            state["exp_avg_sq"] = torch.zeros_like(master)
        # On this rank's parts: an operation on a DTensor takes many times longer to start.
        master = local_part(state["master"])
        assert parameter.grad is not None
        adamw(
            [master],
            [local_part(parameter.grad).float()],
            [local_part(state["exp_avg"])],
            [local_part(state["exp_avg_sq"])],
            [],
            [state["step"]],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        local_part(parameter).copy_(master)


def _states(optimizer: Optimizer, state_dict: State) -> Iterator[tuple[int, Tensor, State]]:
    """The parameters that a state_dict has state of: index, parameter, state."""
    indices = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for index, parameter in zip(indices, parameters, strict=True):
        if index in state_dict["state"]:  # it has been updated
            yield index, parameter, state_dict["state"][index]


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
    state = {
        index: {
            key: _quantize(value, optimizer._new_buffer(parameter, signed=key == "exp_avg"))
            if value.ndim
            else value
            for key, value in values.items()
        }
        for index, parameter, values in _states(optimizer, state_dict)
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
