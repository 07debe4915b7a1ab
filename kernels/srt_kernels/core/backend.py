"""Where Triton meets PyTorch: which tensors run kernels, and functions that both sides share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor

try:
    import triton
except ImportError:  # a CPU needs none
    triton = None

OPTIONS = {
    "enable_fp_fusion": True
}  # of every launch: a * b + c in one instruction, which Triton 3.10 stops doing by default


def use_triton(tensor: Tensor) -> bool:
    """Whether ops on `tensor` run Triton kernels: on a GPU, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1).

    float64 runs the PyTorch path everywhere. Raises ValueError for a GPU tensor where Triton is not installed.
    """
    on_gpu = tensor.device.type == "cuda"
    if on_gpu and triton is None:
        raise ValueError(
            f"device: expected triton to be installed for tensors on {tensor.device}, got no triton"
        )
    interpreted = (
        triton is not None and tensor.device.type == "cpu" and triton.knobs.runtime.interpret
    )
    return (on_gpu or interpreted) and tensor.dtype != torch.float64


def on_its_device(function: Callable) -> Callable:
    """For an op's body: Triton launches on the current GPU, which need not be that of the tensors."""

    @functools.wraps(function)
    def run(*arguments):
        with torch.cuda.device_of(
            next(argument for argument in arguments if isinstance(argument, Tensor))
        ):
            return function(*arguments)

    return run


def shared(function: Callable) -> Callable:
    """Mark arithmetic that Triton kernels call as it is and that PyTorch runs through on_torch.

    Such a function uses `tl` for what TensorLanguage has, operators, other shared functions, and `if` over constexprs.
    """
    if triton is not None:
        return triton.jit(function)
    function.fn = function  # as triton.jit has it
    return function


class TensorLanguage:
    """What shared functions may ask of triton.language, on tensors."""

    abs, exp, sigmoid, where = torch.abs, torch.exp, torch.sigmoid, torch.where


@functools.cache
def on_torch(function: Callable) -> Callable:
    """A shared function over tensors: the same code, with TensorLanguage for `tl` in it and in what it calls."""
    plain = function.fn
    scope = dict(plain.__globals__, tl=TensorLanguage)
    for name in plain.__code__.co_names:
        if callable(scope.get(name)) and hasattr(scope[name], "fn"):
            scope[name] = on_torch(scope[name])
    return FunctionType(plain.__code__, scope, plain.__name__, plain.__defaults__)
