"""LMHead: an LM head and the rows it is applied to, checked and cast for the GEMMs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import NoneType

import torch
import torch.distributed as dist
from torch import Tensor

from srt_kernels.core.checks import check_distinct, check_range, check_tensor, expect
from srt_kernels.lm_head import gemm

# Bytes of a chunk's logits, at most.
CPU_CHUNK_BYTES = 96 << 20
GPU_CHUNK_BYTES = 5 << 29
# cuBLAS's tile of a half GEMM on sm_90. Other chips are taken to have the same.
TILE_ROWS = 128
TILE_COLUMNS = 256
# Each chunk reads and writes dW: 8 V H bytes. At 4.3 TB/s, and with half of it hidden, that takes
# as long as three row tiles of dX at 790 TFLOP/s (an H200).
ROW_TILES_OF_DWEIGHT = 3

HEAD_SCHEMA = """Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, Tensor? row_index,
bool unique_rows, float temperature, float? softcap, int? chunk_rows, str group"""
"""The head's part of a torch.library op's schema. make_head takes them in this order."""


@dataclass(frozen=True, kw_only=True)
class LMHead:
    """logits = softcap(hidden[row_index] @ weight.T + bias) / temperature, for n targets."""

    hidden: Tensor  # [M, H] as the caller has it
    weight: Tensor  # [V, H] in the dtype of the GEMMs' operands: hidden's, but fp32 on ROCm
    bias: Tensor | None  # [V] in the dtype of log-probs
    targets: Tensor  # [n] int64
    row_index: Tensor | None  # [n] int64 hidden row of each target; None: row i is of target i
    temperature: float
    softcap: float | None
    chunk_rows: int  # rows of a chunk, at most
    group: dist.ProcessGroup | None  # rank r holds the vocabulary from r V on
    vocab_start: int  # first vocabulary entry of this rank
    has_unique_rows: bool  # no two targets have the same hidden row

    @property
    def dtype(self) -> torch.dtype:
        """Type of log-probs and accumulators."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @property
    def is_exact_in_bf16(self) -> bool:
        """The operands of the logits are bf16 numbers, whatever type they are stored in."""
        return self.hidden.dtype == torch.bfloat16

    def select(self, index: Tensor) -> LMHead:
        """The same head over targets[index]."""
        row_index = index if self.row_index is None else self.row_index[index]
        return replace(self, targets=self.targets[index], row_index=row_index)

    def hidden_rows(self, part: slice) -> Tensor:
        """[C, H] hidden rows of targets[part], as an operand of the GEMMs."""
        rows = self.hidden[part] if self.row_index is None else self.hidden[self.row_index[part]]
        return rows.to(self.weight.dtype).contiguous()


def group_name(group: dist.ProcessGroup | None) -> str:
    """The name of a process group for an op's schema; "" for None."""
    return "" if group is None else group.group_name


def _group_of_name(name: str) -> dist.ProcessGroup | None:
    return dist.distributed_c10d._resolve_process_group(name) if name else None  # pyright: ignore


def make_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    row_index: Tensor | None = None,
    unique_rows: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    group: str = "",
    *,
    is_forward_only: bool = False,
) -> LMHead:
    """Check an LM head's arguments and cast weight and bias for the GEMMs.

    group: its name, "" for none. is_forward_only: the GEMM is our own kernel on any GPU.
    """
    process_group = _group_of_name(group)
    world_size = 1 if process_group is None else dist.get_world_size(process_group)
    rank = 0 if process_group is None else dist.get_rank(process_group)
    _check_tensors(hidden, weight, bias)
    _check_rows(hidden, targets, row_index, unique_rows, len(weight) * world_size)
    _check_values(temperature, softcap, chunk_rows)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    uses_own_gemm = is_forward_only and hidden.is_cuda
    operand_dtype = hidden.dtype if uses_own_gemm else gemm.operand_dtype(hidden)
    weight = weight.detach()
    if weight.dtype.itemsize > hidden.dtype.itemsize:
        weight = weight.to(hidden.dtype)  # as autocast does
    return LMHead(
        hidden=hidden.detach(),
        weight=weight.to(operand_dtype),
        bias=None if bias is None else bias.detach().to(dtype).contiguous(),
        targets=targets.contiguous(),
        row_index=row_index,
        temperature=temperature,
        softcap=softcap,
        chunk_rows=chunk_rows or _default_chunk_rows(hidden, weight),
        group=process_group,
        vocab_start=rank * len(weight),
        has_unique_rows=row_index is None or unique_rows,
    )


def _default_chunk_rows(hidden: Tensor, weight: Tensor) -> int:
    """Rows of a chunk."""
    row_bytes = len(weight) * torch.promote_types(hidden.dtype, torch.float32).itemsize
    if not hidden.is_cuda:
        return max(1, CPU_CHUNK_BYTES // row_bytes)
    chip = torch.cuda.get_device_properties(hidden.device)
    return gpu_chunk_rows(row_bytes, hidden.shape[1], chip.multi_processor_count)


def gpu_chunk_rows(row_bytes: int, hidden_size: int, multiprocessors: int) -> int:
    """Rows of a chunk on a GPU, from the bytes of a row of logits: whole tiles.

    dX has C / 128 x H / 256 tiles. The multiprocessors take a tile each, wave after wave, and in
    the last wave some have none. With H = 4096 and 132 of them 4224 rows are four whole waves. 3456
    rows are 3.3 and take the time of four. The size is the one whose rows take least time, of dX
    and of reading and writing dW. A prediction: it was not measured.
    """
    most = max(1, GPU_CHUNK_BYTES // row_bytes // TILE_ROWS)
    columns = -(-hidden_size // TILE_COLUMNS)

    def time_of_a_row(row_tiles: int) -> float:
        waves = -(-row_tiles * columns // multiprocessors)
        return (waves * multiprocessors / columns + ROW_TILES_OF_DWEIGHT) / row_tiles

    return TILE_ROWS * min(range(most, 0, -1), key=time_of_a_row)


def _check_tensors(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_tensor("hidden", hidden, (None, None), "float", hidden.device)
    check_tensor("weight", weight, (None, hidden.shape[1]), "float", hidden.device)
    expect(len(weight) > 0, "weight", "at least one row", 0)
    if bias is not None:
        check_tensor("bias", bias, (len(weight),), "float", hidden.device)


def _check_rows(
    hidden: Tensor,
    targets: Tensor,
    row_index: Tensor | None,
    unique_rows: bool,
    vocab_size: int,
) -> None:
    check_tensor("targets", targets, (None,), (torch.int64,), hidden.device)
    rows = len(targets)
    if row_index is None:
        expect(len(hidden) == rows, "hidden", f"{rows} rows without row_index", len(hidden))
    else:
        check_tensor("row_index", row_index, (rows,), (torch.int64,), hidden.device)
        check_range("row_index", row_index, len(hidden))
        if unique_rows:
            check_distinct("row_index", row_index, len(hidden))
    check_range("targets", targets, vocab_size)


def _check_values(temperature: float, softcap: float | None, chunk_rows: int | None) -> None:
    infinity = float("inf")
    expected = "a finite number above 0"
    expect(0 < temperature < infinity, "temperature", expected, temperature)
    is_softcap = softcap is None or 0 < softcap < infinity
    expect(is_softcap, "softcap", f"None or {expected}", softcap)
    is_size = chunk_rows is None or chunk_rows >= 1
    expect(is_size, "chunk_rows", "None or at least 1", chunk_rows)


def check_settings(
    unique_rows: object, temperature: object, softcap: object, chunk_rows: object, group: object
) -> None:
    """Check the types of a head's settings. make_head checks their values."""
    for name, value, types, expected in (
        ("unique_rows", unique_rows, bool, "a bool"),
        ("temperature", temperature, (int, float), "a number"),
        ("softcap", softcap, (int, float, NoneType), "a number or None"),
        ("chunk_rows", chunk_rows, (int, NoneType), "an int or None"),
        ("group", group, (dist.ProcessGroup, NoneType), "a torch.distributed.ProcessGroup or None"),
    ):
        expect(isinstance(value, types), name, expected, type(value).__name__)


def check_finite(head: LMHead, logprobs: Tensor) -> None:
    """Raise ValueError for nan and inf in a weight, and for the first log-prob that is nan.

    Names the hidden row of that log-prob. For CPU tensors: it synchronises with the host.
    """
    # A sum has the nan and inf of its terms, and takes no memory.
    has_weight = bool(head.weight.sum(dtype=head.dtype).isfinite())
    expect(has_weight, "weight", "finite values", "nan or inf")
    bad_targets = logprobs.isnan().nonzero()
    if len(bad_targets) == 0:
        return
    index = bad_targets[0, 0]
    row = int(index if head.row_index is None else head.row_index[index])
    name = "hidden or weight"  # products that overflow, or another rank's part of the weight
    if not head.hidden[row].isfinite().all():
        name = "hidden"
    elif head.bias is not None and not head.bias.isfinite().all():
        name = "bias"
    got = f"nan or inf in what makes the logits of hidden row {row}"
    expect(False, name, "finite values", got)
