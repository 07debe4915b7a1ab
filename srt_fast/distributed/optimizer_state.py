"""An optimizer's state by parameter name, for any number of ranks.

torch.distributed.checkpoint.state_dict is not used: it takes an optimizer step to create the state
that it loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from srt_fast.distributed.tensor_files import describe_tensors, read_tensors
from srt_fast.distributed.world import World
from srt_fast.errors import CheckpointError


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state_dict: "layer.weight.exp_avg" and so on.

    They are not copied, but state of 8 bits is float32 there (srt_fast/optimizer.py). A parameter
    that has not been updated yet has no state.
    """
    names = _parameter_names(model, optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{names[id(parameters[index])]}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def optimizer_settings(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """What else an optimizer holds: learning rates and so on, and state that is no tensor.

    Small. torch.load(weights_only=True) reads it.
    """
    names = _parameter_names(model, optimizer)
    groups = [
        {**group, "params": [names[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    values = {
        names[id(parameter)]: {
            key: value for key, value in state.items() if not isinstance(value, Tensor)
        }
        for parameter, state in optimizer.state.items()
    }
    return {"groups": groups, "values": values}


def read_optimizer(
    folder: Path,
    settings: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    world: World,
) -> dict[str, Any]:
    """The state that optimizer.load_state_dict takes. All ranks call it.

    folder: of write_tensors(folder, optimizer_tensors(...)). settings: of optimizer_settings. The
    tensors are sharded as the model's parameters are, and in host memory: a device may not have
    room for 8-bit state in float32.

    Raises CheckpointError for a damaged folder, and for the state of another model's optimizer.
    """
    names = _parameter_names(model, optimizer)
    parameters = {
        names[id(parameter)]: parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    with world.agreement():
        tensors = _empty_tensors(folder, parameters)
        _check_groups(settings["groups"], optimizer, names)
    read_tensors(folder, tensors, world)
    state = {name: dict(values) for name, values in settings["values"].items()}
    for place, tensor in tensors.items():
        name, key = place.rsplit(".", 1)
        state[name][key] = tensor
    indices = {name: index for index, name in enumerate(parameters)}
    groups = [
        {**group, "params": [indices[name] for name in group["params"]]}
        for group in settings["groups"]
    ]
    return {
        "state": {indices[name]: values for name, values in state.items()},
        "param_groups": groups,
    }


def _empty_tensors(folder: Path, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to read a folder into. What has a parameter's shape is sharded like it."""
    tensors = {}
    for place, (shape, dtype) in describe_tensors(folder).items():
        name = place.rpartition(".")[0]
        if name not in parameters:
            raise CheckpointError(
                f"{folder}: expected the state of the model's parameters, got one of {name!r}"
            )
        parameter = parameters[name].detach()
        if shape == parameter.shape:
            tensors[place] = torch.empty_like(parameter, dtype=dtype, device="cpu")
        else:
            tensors[place] = torch.empty(shape, dtype=dtype)
    return tensors


def _check_groups(
    groups: list[dict[str, Any]], optimizer: Optimizer, names: dict[int, str]
) -> None:
    for saved, group in zip(groups, optimizer.param_groups, strict=True):
        expected = [names[id(parameter)] for parameter in group["params"]]
        if saved["params"] != expected:
            different = sorted(set(saved["params"]).symmetric_difference(expected))
            raise CheckpointError(
                f"optimizer: expected the parameters of this model, got others: {different[:3]}"
            )


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> dict[int, str]:
    """The name of each of the optimizer's parameters, by its id."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        # Units of FSDP that are not sharded show other parameters than the optimizer's.
        assert all(id(parameter) in names for parameter in group["params"]), "reshard the model"
    return names
