"""A GPU that is simulated: its tensors say that they are on "cuda" and compute on the CPU.

It has values, where torch's FakeTensorMode has shapes only. So whole steps run. It shows what only
a GPU would show: which calls wait for the device, and which mix devices.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.attention.varlen  # registers the op that _run stands for
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from roofline.cuda_tensor import CudaTensor
from srt_fast.model.attention import _per_sequence
from srt_fast.types import Segments

ROOT = Path(__file__).parents[2]
aten = torch.ops.aten
SIZE_DEPENDS_ON_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.self_Tensor,
}
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}


class SimulatedTensor(CudaTensor):
    """On the simulated GPU. `values` is on the CPU."""

    def tolist(self) -> Any:
        return self.cpu().tolist()


class SimulatedCuda(TorchDispatchMode):
    """Runs operations of simulated tensors. Use it inside `fake_cuda_is_initialised()`.

    host_syncs: how often each function of the project has waited for the device. Calls inside of
    srt_fast/sampling do not count. outside: calls that come from no function of the project do.
    """

    def __init__(self, *, outside: bool = False) -> None:
        super().__init__()
        self._outside = outside
        self.host_syncs: Counter[str] = Counter()
        self._pinned: set[int] = set()  # addresses of pinned memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        simulated = {id(t.values): t for t in leaves if isinstance(t, SimulatedTensor)}
        device = kwargs.get("device")
        is_on_gpu = bool(simulated) if device is None else device.type in ("cuda", "meta")
        if simulated or is_on_gpu:
            self._check(func, args, kwargs, leaves, is_on_gpu)
        if is_on_gpu and device is not None:
            kwargs["device"] = torch.device("cpu")
        wants_pinned = kwargs.pop("pin_memory", None)
        with no_dispatch():
            plain = tree_map_only(SimulatedTensor, lambda tensor: tensor.values, (args, kwargs))
            result = _run(func, *plain)
        if wants_pinned:
            self._pinned.add(result.data_ptr())
        if not is_on_gpu:
            return result

        def simulate(values: Tensor) -> SimulatedTensor:
            is_known = id(values) in simulated  # an operation in place returns its argument
            return simulated[id(values)] if is_known else SimulatedTensor(values)

        return tree_map_only(Tensor, simulate, result)

    def _check(
        self, func: Any, args: Any, kwargs: Any, leaves: list[Tensor], is_on_gpu: bool
    ) -> None:
        """Count a call that waits. Raise AssertionError for one that a GPU would refuse."""
        hosts = [t for t in leaves if not isinstance(t, SimulatedTensor)]
        is_copy = func in (aten._to_copy.default, aten.copy_.default)
        if is_copy:
            source = args[-1]
            if isinstance(source, SimulatedTensor) == is_on_gpu and not hosts:
                return
            is_async = kwargs.get("non_blocking", False) and source.data_ptr() in self._pinned
            if not (is_on_gpu and is_async):
                self._count()
            return
        indexes = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
        if indexes and isinstance(args[0], SimulatedTensor):
            # A mask becomes places, and places of the host are copied.
            places = [place for place in args[1] if place is not None]
            is_on_host = [not isinstance(place, SimulatedTensor) for place in places]
            if any(is_on_host) or any(place.dtype == torch.bool for place in places):
                self._count()
            return
        wrong = [t for t in hosts if t.dim() > 0]
        assert not wrong, f"{self._place()}: {func}: a tensor of the host beside the GPU's"
        is_unsized = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        if func in READS or func in SIZE_DEPENDS_ON_VALUES or is_unsized:
            self._count()
        if func is torch.ops.srt_kernels.linear_policy_loss.default and not args[-2]:  # all_rows
            self.host_syncs["linear_policy_loss"] += 1

    def _count(self) -> None:
        place = self._place()
        if place is not None:
            self.host_syncs[place] += 1

    def _place(self) -> str | None:
        """The function of the project that called, None inside of srt_fast/sampling."""
        frame: Any = sys._getframe(1)
        places = []
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT / "srt_fast") or path.is_relative_to(ROOT / "kernels"):
                if path.parent.name == "sampling":
                    return None
                if path.name != "transfer.py":
                    places.append(frame.f_code.co_qualname.split(".<locals>")[0])
            frame = frame.f_back
        if places:
            return places[0]
        return "outside" if self._outside else None


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """func on the CPU. PyTorch's varlen attention runs on a GPU only: another one stands for it."""
    if func is torch.ops.torch_attn._varlen_attn.default:
        query, key, value, cu_queries, cu_keys = args[:5]
        segments = Segments(
            query_lengths=cu_queries.diff().tolist(),
            key_lengths=cu_keys.diff().tolist(),
            cu_queries=cu_queries,
            cu_keys=cu_keys,
            key_index=None,  # the keys come gathered
        )
        out = _per_sequence(query, key, value, segments, kwargs.get("scale"), None)
        return out, query.new_zeros(1), query.new_zeros(1)
    if func is torch.ops.torch_attn._varlen_attn_backward.default:
        return tuple(torch.ones_like(tensor) for tensor in args[1:4])
    return func(*args, **kwargs)


def fake_cuda_is_initialised() -> FakeTensorMode:
    """Lets torch take the device "cuda" on a machine without one."""
    return FakeTensorMode()


def move_model(model: nn.Module) -> None:
    """Move a model's parameters and buffers to the simulated GPU, in place."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                values = parameter.detach()
                new = moved.setdefault(id(parameter), nn.Parameter(SimulatedTensor(values)))
                module._parameters[name] = new
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = SimulatedTensor(buffer)
