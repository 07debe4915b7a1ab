"""An op's body on tensors of a GPU that is not there. A read on the host fails by name."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Call = tuple[OpOverload, tuple[Any, ...]]

aten = torch.ops.aten
BINDINGS = {Tensor.__invert__: aten.bitwise_not, Tensor.contiguous: aten.contiguous}


class Calls(TorchDispatchMode):
    """Lists the operators that are called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func, args))
        kwargs = kwargs or {}
        out = kwargs.get("out")
        if out is not None and out.is_cuda:  # fake tensors would copy, and ask for the driver
            return out
        return func(*args, **kwargs)


class Indexing(TorchFunctionMode):
    """tensor[place] and BINDINGS by operators. Writing and copying check shapes and do nothing.

    As methods they ask for the driver, which a torch without CUDA does not have. place: an int, a
    slice, a tensor, or a tuple of ints, slices and None.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            return _read(*args)
        if func is Tensor.__setitem__:
            tensor, place, values = args
            torch.broadcast_to(values, _read(tensor, place).shape)
            return None
        if func in BINDINGS:
            return BINDINGS[func](*args)
        if func is Tensor.copy_:
            torch.broadcast_to(args[1], args[0].shape)
            return args[0]
        return func(*args, **(kwargs or {}))


def _read(tensor: Tensor, places: Any) -> Tensor:
    if isinstance(places, Tensor):
        return aten.index(tensor, [places])
    dimension = 0
    for place in places if isinstance(places, tuple) else (places,):
        if isinstance(place, int):
            tensor = tensor.select(dimension, place)
            continue
        if place is None:
            tensor = tensor.unsqueeze(dimension)
        else:
            tensor = aten.slice(tensor, dimension, place.start, place.stop)
        dimension += 1
    return tensor


def run_on_fake_gpu(
    monkeypatch: pytest.MonkeyPatch, op: OpOverload, arguments: tuple[Any, ...]
) -> list[Call]:
    """Run the body of one of our ops on tensors like `arguments`, as on an H200.

    Triton's kernels are not run: they only write to tensors. Returns the calls of operators.
    """
    from triton.runtime.jit import JITFunction

    monkeypatch.setattr(JITFunction, "run", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    body = OPDEFS[f"srt_kernels::{op.overloadpacket.__name__}"]._init_fn
    with FakeTensorMode(allow_non_fake_inputs=False), Indexing(), Calls() as calls:
        body(*tree_map_only(Tensor, _on_gpu, arguments))
    return calls.calls


def _on_gpu(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
