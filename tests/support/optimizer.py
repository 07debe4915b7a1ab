"""The state of an optimizer, to compare it bit for bit."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from srt_fast.distributed.sharding import local_part


@torch.no_grad()
def state_bits(optimizer: Optimizer) -> dict[str, list]:
    """This rank's values of each plain tensor of the state, also of those inside 8-bit state."""
    bits = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        for key, value in optimizer.state[parameter].items():
            local = local_part(value)
            names = getattr(local, "tensor_attrs", None)  # of torchao's tensors
            inner = {name: getattr(local, name) for name in names} if names else {"": local}
            for name, tensor in inner.items():
                bits[f"{index} {key} {name}"] = tensor.flatten().tolist()
    return bits
