"""Triton: log-probs and entropies of an LM head without gradient and without logits in memory.

One GEMM. A tile of logits ends in the registers as one partial (row_max, sum_exp, sum_exp_logit)
for each row. Running statistics over the vocabulary would spill registers. Partials take 12 bytes
per row and tile. A second kernel combines a row's partials in order. Tiles and order do not depend
on N, so a row's result depends on no other row.
"""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import LAUNCH_OPTIONS
from srt_kernels.lm_head.lm_head import LMHead
from srt_kernels.lm_head.logits_row import LOG2E, LOWEST, apply_options

CHUNK_ROWS = 1 << 14  # rows of partials: 12 bytes x 1e3 tiles x 16384 rows = 200 MB
COMBINE_BLOCK = 128  # rows
COMBINE_WARPS = 4


@dataclass(frozen=True)
class Tile:
    """Block sizes that compile without spills (tests/kernels/test_aot.py)."""

    BLOCK_ROWS: int
    BLOCK_VOCAB: int
    BLOCK_HIDDEN: int
    num_warps: int
    num_stages: int


HOPPER = Tile(128, 128, 64, 8, 3)
AMPERE = Tile(128, 128, 32, 8, 3)
SAFE = Tile(64, 64, 32, 4, 2)
TILES = {90: HOPPER, 100: HOPPER, 103: HOPPER, 80: AMPERE}  # by compute capability


def tile_of(device: torch.device, dtype: torch.dtype) -> Tile:
    """The tile for operands of `dtype`. SAFE for unknown GPUs and for fp32.

    fp32 has no tensor cores in full precision.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return SAFE
    if torch.version.hip:
        return AMPERE if "gfx942" in torch.cuda.get_device_properties(device).gcnArchName else SAFE
    major, minor = torch.cuda.get_device_capability(device)
    return TILES.get(10 * major + minor, SAFE)


@triton.jit
def tiles_kernel(
    # data
    x_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    partial_ptr,
    target_logit_ptr,
    # shapes
    rows,
    vocab_size,
    hidden_size,
    # strides
    x_stride,
    weight_stride,
    # constants
    vocab_start,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Write partials [3, tiles of the vocabulary, rows] and target_logit [rows].

    Logits are of x [rows, H] @ weight [V, H].T. Partials are row_max, sum_exp and sum_exp_logit of
    a tile without the target.
    """
    # Eight tiles of rows share a tile of the weight while it is in the L2 cache.
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    vocab_tiles = tl.cdiv(vocab_size, BLOCK_VOCAB)
    group = tl.program_id(0) // (8 * vocab_tiles)
    group_rows = tl.minimum(row_tiles - 8 * group, 8)
    place = tl.program_id(0) - 8 * group * vocab_tiles
    row_tile = 8 * group + place % group_rows
    vocab_tile = place // group_rows
    row = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = vocab_tile * BLOCK_VOCAB + tl.arange(0, BLOCK_VOCAB)
    lane = tl.arange(0, BLOCK_HIDDEN)
    x_row = tl.minimum(row, rows - 1).to(tl.int64)
    weight_row = tl.minimum(column, vocab_size - 1).to(tl.int64)
    x_ptrs = x_ptr + x_row[:, None] * x_stride + lane[None, :]
    weight_ptrs = weight_ptr + weight_row[None, :] * weight_stride + lane[:, None]
    product = tl.zeros((BLOCK_ROWS, BLOCK_VOCAB), tl.float32)
    for start in range(0, hidden_size, BLOCK_HIDDEN):
        x = tl.load(x_ptrs + start, mask=lane[None, :] < hidden_size - start, other=0.0)
        weight = tl.load(weight_ptrs + start, mask=lane[:, None] < hidden_size - start, other=0.0)
        product = tl.dot(x, weight, product, input_precision="ieee")
    target = tl.load(target_ptr + row, mask=row < rows, other=-1) - vocab_start
    in_vocab = (column < vocab_size)[None, :]
    logits = apply_options(
        product=product,
        bias_ptr=bias_ptr,
        columns=column[None, :],
        has_bias=in_vocab,
        is_inside=in_vocab & (row >= 0)[:, None],
        softcap=softcap,
        inv_temperature=inv_temperature,
        HAS_BIAS=HAS_BIAS,
        HAS_SOFTCAP=HAS_SOFTCAP,
    )
    is_target = column[None, :] == target[:, None]
    first = vocab_tile * BLOCK_VOCAB
    is_in_tile = (target >= first) & (target < tl.minimum(first + BLOCK_VOCAB, vocab_size))
    target_logit = tl.sum(tl.where(is_target, logits, 0.0), 1)
    tl.store(target_logit_ptr + row, target_logit, mask=(row < rows) & is_in_tile)
    logits = tl.where(is_target, LOWEST, logits)
    row_max = tl.max(logits, 1)
    shift = logits - row_max[:, None]
    exps = tl.exp2(shift * LOG2E)
    partial_ptrs = partial_ptr + vocab_tile.to(tl.int64) * rows + row
    size = vocab_tiles.to(tl.int64) * rows
    tl.store(partial_ptrs, row_max, mask=row < rows)
    tl.store(partial_ptrs + size, tl.sum(exps, 1), mask=row < rows)
    tl.store(partial_ptrs + 2 * size, tl.sum(exps * shift, 1), mask=row < rows)


@triton.jit
def combine_kernel(partial_ptr, statistics_ptr, rows, tiles, BLOCK: tl.constexpr):
    """Write statistics [3, rows] of partials [3, tiles, rows], tile after tile."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = row < rows
    size = tiles * rows  # below 2^31, because there are at most CHUNK_ROWS rows
    row_max = tl.full((BLOCK,), LOWEST, tl.float32)
    sum_exp = tl.zeros((BLOCK,), tl.float32)
    sum_exp_logit = tl.zeros((BLOCK,), tl.float32)
    partial_ptrs = partial_ptr + row
    for _ in range(0, tiles):
        tile_max = tl.load(partial_ptrs, mask=is_inside, other=LOWEST)
        tile_sum = tl.load(partial_ptrs + size, mask=is_inside, other=0.0)
        tile_sum_logit = tl.load(partial_ptrs + 2 * size, mask=is_inside, other=0.0)
        higher = tl.maximum(row_max, tile_max)
        shift = row_max - higher
        tile_shift = tile_max - higher
        scale = tl.exp2(shift * LOG2E)
        tile_scale = tl.exp2(tile_shift * LOG2E)
        sum_exp_logit = scale * (sum_exp_logit + shift * sum_exp) + tile_scale * (
            tile_sum_logit + tile_shift * tile_sum
        )
        sum_exp = scale * sum_exp + tile_scale * tile_sum
        row_max = higher
        partial_ptrs += rows
    tl.store(statistics_ptr + row, row_max, mask=is_inside)
    tl.store(statistics_ptr + rows + row, sum_exp, mask=is_inside)
    tl.store(statistics_ptr + 2 * rows + row, sum_exp_logit, mask=is_inside)


def head_statistics(x: Tensor, targets: Tensor, head: LMHead) -> Tensor:
    """[4, n] fp32 statistics of hidden rows x [n, H], n at most CHUNK_ROWS.

    They are row_max, sum_exp, sum_exp_logit and target_logit, as logits_kernel.row_statistics has
    them. x is of the weight's dtype.
    """
    rows, hidden_size = x.shape
    assert rows <= CHUNK_ROWS, rows
    tile = tile_of(x.device, x.dtype)
    vocab_size = len(head.weight)
    vocab_tiles = triton.cdiv(vocab_size, tile.BLOCK_VOCAB)
    partials = torch.empty(3, vocab_tiles, rows, dtype=torch.float32, device=x.device)
    statistics = torch.empty(4, rows, dtype=torch.float32, device=x.device)
    if head.group is not None:
        statistics[3].zero_()  # targets of other shards
    weight = head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
    tiles_kernel[(triton.cdiv(rows, tile.BLOCK_ROWS) * vocab_tiles,)](
        x_ptr=x,
        weight_ptr=weight,
        bias_ptr=head.bias,
        target_ptr=targets,
        partial_ptr=partials,
        target_logit_ptr=statistics[3],
        rows=rows,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        x_stride=x.stride(0),
        weight_stride=weight.stride(0),
        vocab_start=head.vocab_start,
        softcap=head.softcap or 1.0,
        inv_temperature=1 / head.temperature,
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=head.softcap is not None,
        **asdict(tile),
        **LAUNCH_OPTIONS,
    )
    combine_kernel[(triton.cdiv(rows, COMBINE_BLOCK),)](
        partial_ptr=partials,
        statistics_ptr=statistics,
        rows=rows,
        tiles=vocab_tiles,
        BLOCK=COMBINE_BLOCK,
        num_warps=COMBINE_WARPS,
        **LAUNCH_OPTIONS,
    )
    return statistics
