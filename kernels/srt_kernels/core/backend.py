"""Where Triton meets PyTorch: which tensors run kernels, and arithmetic that both sides share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor

try:
    import triton
    import triton.knobs
except ImportError:  # Triton is optional: a CPU does not need it.
    triton = None

Result = TypeVar("Result")

LAUNCH_OPTIONS = {"enable_fp_fusion": True}
"""Options of every launch. a * b + c is one instruction; Triton 3.10 turns that off by default."""


def use_triton(tensor: Tensor) -> bool:
    """Whether ops on `tensor` run Triton kernels.

    They do on a GPU, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1). float64 always runs
    the PyTorch path. Raises ValueError for a GPU tensor if Triton is not installed.
    """
    is_on_gpu = tensor.device.type == "cuda"
    if is_on_gpu and triton is None:
        raise ValueError(
            f"device: expected triton to be installed for tensors on {tensor.device}, got no triton"
        )
    is_interpreted = (
        triton is not None and tensor.device.type == "cpu" and triton.knobs.runtime.interpret
    )
    return (is_on_gpu or is_interpreted) and tensor.dtype != torch.float64


def is_interpreted_bf16(tensor: Tensor) -> bool:
    """Whether Triton's interpreter would take the bits of this tensor for integers."""
    return not tensor.is_cuda and tensor.dtype == torch.bfloat16 and use_triton(tensor)


def on_device_of_tensors(function: Callable[..., Result]) -> Callable[..., Result]:
    """Run an op's body with the GPU of its first tensor as the current GPU, where Triton
    launches.
    """

    @functools.wraps(function)
    def run(*arguments: Any) -> Result:
        tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
        with torch.cuda.device_of(tensor):
            return function(*arguments)

    return run


def kernel_function(function: Any) -> Any:
    """Mark arithmetic that Triton kernels call directly and that PyTorch runs through `as_torch`.

    Its body may have operators, members of `tl` that TensorLanguage has, other kernel functions,
    and `if` over constants.
    """
    if triton is not None:
        return triton.jit(function)
    function.fn = function  # triton.jit has this attribute too
    return function


class TensorLanguage:
    """The members of triton.language that kernel functions may use, for tensors."""

    abs = torch.abs
    exp = torch.exp
    sigmoid = torch.sigmoid
    where = torch.where


@functools.cache
def as_torch(function: Any) -> Callable:
    """A kernel function that computes with tensors.

    It has the same code. TensorLanguage stands for `tl` in it and in the kernel functions that it
    calls.
    """
    plain = function.fn
    scope = dict(plain.__globals__, tl=TensorLanguage)
    for name in plain.__code__.co_names:
        if callable(scope.get(name)) and hasattr(scope[name], "fn"):
            scope[name] = as_torch(scope[name])
    return FunctionType(plain.__code__, scope, plain.__name__, plain.__defaults__)
