"""A tensor that says it is on "cuda", on a machine without a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CUDA = torch.device("cuda", 0)


class CudaTensor(Tensor):
    """A tensor on a pretended GPU. `values` is another tensor of its shape.

    A TorchDispatchMode has to run what is done with it.
    """

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls, values: Tensor) -> CudaTensor:
        # C++ sees the device "meta": autograd then needs no GPU.
        tensor = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device="meta"
        )
        tensor.values = values
        return tensor

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise AssertionError(f"{func} on a {cls.__name__} outside of its mode")
