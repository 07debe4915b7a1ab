"""What a launch computes and moves: FLOPs and bytes of an operator or of a Triton kernel.

Bytes are those of memory, each tensor once: what a perfect cache would leave. Exceptions are named
below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# Arguments before the two operands.
GEMMS = {aten.mm: 0, aten.addmm: 1, aten.addmm_: 1}
WITHOUT_LAUNCH = {aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided}
WITHOUT_READ = {aten.copy_, aten.zero_, aten.fill_}  # they overwrite what was there
# They read or write the rows of an index, not all of their first argument.
GATHERS = {aten.index, aten.index_select, aten.gather}
SCATTERS = {aten.index_copy_, aten.index_put_, aten.index_add_}
# Read a row of logits twice. Two rows for each multiprocessor do not fit an L2 cache (a row takes
# 608 KB with V 151936), so the second time counts.
TWICE = {"fused_kernel": "logits_ptr"}
# Reads one number and returns if that is 1, as the gradient of a loss is after loss.backward().
RETURNS_AT_ONCE = {"scale_kernel"}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """An operator of PyTorch, or a kernel of ours."""

    name: str
    bytes: int
    flops: int = 0  # of products of matrices
    is_fp32: bool = False  # type of the operands of these products
    l2_bytes: int = 0  # operands as our own GEMM's tiles read them from the L2 cache
    gemm_rows: int = 0  # shape of the result of a GEMM of the library
    gemm_columns: int = 0


def launch_of_operator(func: Any, args: Any, kwargs: Any, result: Any) -> Launch | None:
    """None for a view, and for what moves nothing."""
    packet = func.overloadpacket
    returns = func._schema.returns
    is_view = any(value.alias_info and not value.alias_info.is_write for value in returns)
    if is_view or packet in WITHOUT_LAUNCH:
        return None
    moved = _operator_bytes(func, args, kwargs, result)
    if moved == 0:
        return None
    if packet not in GEMMS:
        return Launch(name=packet.__name__, bytes=moved)
    left, right = args[GEMMS[packet] :][:2]
    rows, inner = left.shape
    columns = right.shape[1]
    return Launch(
        name=f"{packet.__name__} {rows} x {inner} x {columns}",
        bytes=moved,
        flops=2 * rows * inner * columns,
        is_fp32=left.dtype == torch.float32,
        gemm_rows=rows,
        gemm_columns=columns,
    )


def _operator_bytes(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    packet = func.overloadpacket
    if packet in GATHERS:
        return 2 * _bytes(result) + sum(_bytes(value) for value in tree_leaves(args[1:]))
    if packet in SCATTERS:
        return sum(2 * _bytes(value) for value in tree_leaves(args[1:]))
    schema = func._schema.arguments
    values = [(argument, kwargs.get(argument.name)) for argument in schema]
    values[: len(args)] = zip(schema, args, strict=False)
    moved = 0
    is_in_place = False
    for argument, value in values:
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        is_in_place |= is_written
        is_read = not (is_written and (packet in WITHOUT_READ or argument.kwarg_only))
        tensor_bytes = sum(_bytes(leaf) for leaf in tree_leaves(value))
        moved += (is_written + is_read) * tensor_bytes
    return moved if is_in_place else moved + sum(_bytes(leaf) for leaf in tree_leaves(result))


def launch_of_kernel(name: str, arguments: dict[str, Any]) -> Launch:
    """A Triton kernel, by its name and arguments."""
    tensors = {key: getattr(value, "base", value) for key, value in arguments.items()}
    if name in RETURNS_AT_ONCE:
        return Launch(name=name, bytes=_bytes(tensors["factor_ptr"]))
    moved = sum(_bytes(value) for value in tensors.values())
    if name in TWICE:
        moved += _bytes(tensors[TWICE[name]])
    if name != "tiles_kernel":
        return Launch(name=name, bytes=moved)
    rows, vocab_size, hidden_size = (
        arguments[key] for key in ("rows", "vocab_size", "hidden_size")
    )
    block_rows, block_vocab = arguments["BLOCK_ROWS"], arguments["BLOCK_VOCAB"]
    tiles = math.ceil(rows / block_rows) * math.ceil(vocab_size / block_vocab)
    itemsize = next(value for value in tensors.values() if isinstance(value, Tensor)).itemsize
    return Launch(
        name=name,
        bytes=moved,
        flops=2 * rows * vocab_size * hidden_size,
        is_fp32=itemsize == 4,
        l2_bytes=tiles * (block_rows + block_vocab) * hidden_size * itemsize,
    )


def _bytes(value: Any) -> int:
    """Bytes of a tensor; an expanded one has those of its storage. 0 for anything else."""
    if not isinstance(value, Tensor):
        return 0
    sizes = zip(value.shape, value.stride(), strict=True)
    return value.itemsize * math.prod(size for size, stride in sizes if stride or size == 0)
