"""Runs an op's own GPU code without a GPU, and lists what it launches.

Tensors say that they are on "cuda". Matrices have no values. Vectors have some, so that the op can
read its counts on the host. What is computed from a matrix is 1 (true, finite, of log-probs 1):
nothing that is launched depends on it.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from triton.runtime.jit import JITFunction

from roofline.chips import Chip
from roofline.cuda_tensor import CudaTensor
from roofline.launches import GEMMS, Launch, launch_of_kernel, launch_of_operator

LARGEST_VECTOR = 1 << 24  # elements; longer ones have no values


class ChipTensor(CudaTensor):
    """A tensor on the pretended GPU. `values` is on the CPU, or on "meta" if there are none."""

    def data_ptr(self) -> int:
        return 0  # aligned, as allocations are

    def tolist(self) -> Any:
        return self.values.tolist()


def chip_tensor(*shape_and_dtype: Any) -> ChipTensor:
    """An input: zeros, or without values."""
    *shape, dtype = shape_and_dtype
    return ChipTensor(torch.zeros(shape, dtype=dtype, device="cpu" if len(shape) < 2 else "meta"))


class Trace(TorchDispatchMode):
    """Lists the launches inside of it, and counts the bytes of the tensors that are made.

    live: bytes alive. peak: the most since `begin`. What a library allocates inside one operator is
    not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.live = 0
        self.peak = 0
        self.live_before = 0
        self._watched: dict[int, weakref.ref] = {}

    def begin(self) -> None:
        """Forget what was launched, and the peak."""
        self.launches.clear()
        self.live_before = self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace == "srt_kernels":
            with self:
                return OPDEFS[f"srt_kernels::{func.overloadpacket.__name__}"]._init_fn(*args)
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:  # an operator that is made of others
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, ChipTensor)]
        device = kwargs.get("device")
        is_on_chip = bool(inputs) if device is None else device.type in ("cuda", "meta")
        with no_dispatch():
            if not is_on_chip:
                return func(*tree_map_only(ChipTensor, lambda t: t.values, args), **kwargs)
            result = _run(func, args, kwargs, inputs)
            launch = launch_of_operator(func, args, kwargs, result)
        if launch is not None:
            self.launches.append(launch)
        known = {id(tensor.values): tensor for tensor in inputs}
        addresses = {id(tensor.values.untyped_storage()) for tensor in inputs}

        def wrap(values: Tensor) -> ChipTensor:
            if id(values) in known:  # an operation in place returns its argument
                return known[id(values)]
            if id(values.untyped_storage()) not in addresses:
                self._watch(values.untyped_storage())
            return ChipTensor(values)

        return tree_map_only(Tensor, wrap, result)

    def _watch(self, storage: torch.UntypedStorage) -> None:
        address = id(storage)
        if address in self._watched:
            return
        size = storage.nbytes()

        def forget(_: Any) -> None:
            self.live -= size
            del self._watched[address]

        self._watched[address] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


def _run(func: Any, args: Any, kwargs: Any, inputs: list[ChipTensor]) -> Any:
    """func on the values, as far as there are any. An argument that is written comes back."""
    has_values = all(tensor.values.device.type == "cpu" for tensor in inputs)
    if inputs and has_values and func.overloadpacket not in GEMMS:
        return func(*_values_on("cpu", args), **_values_on("cpu", kwargs))
    result = func(*_values_on("meta", args), **_values_on("meta", kwargs))
    if not inputs:  # a new tensor
        return func(*args, **_values_on("cpu", kwargs)) if _is_vector(result) else result
    written = [
        kwargs.get(argument.name) if place >= len(args) else args[place]
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if written:
        [tensor] = written
        return tensor.values
    return tree_map_only(Tensor, _give_values, result)


def _values_on(device: str, arguments: Any) -> Any:
    """The arguments with the values of their tensors, and with this device instead of another."""
    arguments = tree_map_only(ChipTensor, lambda tensor: tensor.values.to(device), arguments)
    return tree_map_only(torch.device, lambda _: torch.device(device), arguments)


def _is_vector(tensor: Tensor) -> bool:
    return tensor.dim() < 2 and tensor.numel() <= LARGEST_VECTOR


def _give_values(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor, device="cpu") if _is_vector(tensor) else tensor


@contextmanager
def trace_on(chip: Chip) -> Iterator[Trace]:
    """A Trace in which PyTorch and Triton report this GPU. Triton's kernels do not run."""
    trace = Trace()
    properties = SimpleNamespace(
        multi_processor_count=chip.multiprocessors,
        gcnArchName=f"{chip.architecture}:sramecc+:xnack-",
        total_memory=int(chip.memory),
    )
    capability = (9, 4)
    if chip.is_cuda:
        capability = divmod(int(chip.architecture.removeprefix("sm_")), 10)

    def launch(self: Any, *_: Any, grid: Any, warmup: bool, **arguments: Any) -> None:
        trace.launches.append(launch_of_kernel(self.__name__, arguments))

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # autocast on a machine without CUDA
        for target, replacement in (
            ("torch.version.hip", None if chip.is_cuda else "6.0"),
            ("torch.cuda.device_of", lambda _: contextlib.nullcontext()),
            ("torch.cuda.get_device_capability", lambda *_: capability),
            ("torch.cuda.get_device_properties", lambda *_: properties),
        ):
            stack.enter_context(patch(target, replacement))
        stack.enter_context(patch.object(JITFunction, "run", launch))
        stack.enter_context(FakeTensorMode())  # lets torch take the device "cuda"
        yield stack.enter_context(trace)
