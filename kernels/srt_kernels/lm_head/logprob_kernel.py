"""Triton: log-probs and entropies of an LM head without gradient and without logits in memory.

One GEMM. A tile of logits ends in the registers as one partial (row_max, sum_exp, sum_exp_logit)
for each row. Running statistics over the vocabulary would spill registers. Partials take 12 bytes
per row and tile. A second kernel combines a row's partials in order. Tiles and order do not depend
on N, so a row's result depends on no other row.
"""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from srt_kernels.core.backend import LAUNCH_OPTIONS
from srt_kernels.lm_head.lm_head import LMHead
from srt_kernels.lm_head.logits_row import LOG2E, LOWEST, apply_options

CHUNK_ROWS = 1 << 14  # rows of partials: 12 bytes x 1e3 tiles x 16384 rows = 200 MB
COMBINE_BLOCK = 128  # rows
COMBINE_WARPS = 4


@dataclass(frozen=True)
class Tile:
    """Block sizes that compile without spills (tests/kernels/test_aot.py).

    USES_DESCRIPTORS: the GPU's copy engine (TMA) loads the operands, else its threads. Rows then
    begin at multiples of 16 bytes.
    """

    BLOCK_ROWS: int
    BLOCK_VOCAB: int
    BLOCK_HIDDEN: int
    num_warps: int
    num_stages: int
    USES_DESCRIPTORS: bool = False


# Operands pass through the L2 cache once for each tile: 1/128 + 1/256 of a byte for each 2 FLOPs.
HOPPER = Tile(128, 256, 64, 8, 4, USES_DESCRIPTORS=True)
HOPPER_UNALIGNED = Tile(128, 128, 64, 8, 3)
AMPERE = Tile(128, 128, 32, 8, 3)  # 48 KiB of shared memory at most: for all of these GPUs
SAFE = Tile(64, 64, 32, 4, 2)
TILES = {90: HOPPER, 100: HOPPER, 103: HOPPER} | dict.fromkeys(
    (80, 86, 87, 89, 120, 121), AMPERE
)  # by compute capability


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


def _has_aligned_rows(operand: Tensor) -> bool:
    """Whether rows begin at multiples of 16 bytes, as descriptors want them."""
    return operand.data_ptr() % 16 == 0 and operand.stride(0) * operand.itemsize % 16 == 0


def _descriptor(operand: Tensor, block_rows: int, tile: Tile) -> Tensor | TensorDescriptor:
    """The operand [rows, H] as the kernel takes it with this tile."""
    if not tile.USES_DESCRIPTORS:
        return operand
    return TensorDescriptor.from_tensor(operand, [block_rows, tile.BLOCK_HIDDEN])


@triton.jit
def part_statistics(
    product,
    first,
    target,
    bias_ptr,
    vocab_size,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """row_max, sum_exp, sum_exp_logit and target_logit of products [rows, columns], each [rows].

    first: the vocabulary entry of the first column. The target is left out of all but its logit,
    which is 0 if it is not among the columns.
    """
    column = first + tl.arange(0, product.shape[1])
    in_vocab = (column < vocab_size)[None, :]
    logits = apply_options(
        product=product,
        bias_ptr=bias_ptr,
        columns=column[None, :],
        has_bias=in_vocab,
        is_inside=in_vocab & (target == target)[:, None],
        softcap=softcap,
        inv_temperature=inv_temperature,
        HAS_BIAS=HAS_BIAS,
        HAS_SOFTCAP=HAS_SOFTCAP,
    )
    is_target = column[None, :] == target[:, None]
    target_logit = tl.sum(tl.where(is_target, logits, 0.0), 1)
    logits = tl.where(is_target, LOWEST, logits)
    row_max = tl.max(logits, 1)
    shift = logits - row_max[:, None]
    exps = tl.exp2(shift * LOG2E)
    return row_max, tl.sum(exps, 1), tl.sum(exps * shift, 1), target_logit


@triton.jit
def merge_statistics(row_max, sum_exp, sum_exp_logit, part_max, part_sum, part_sum_logit):
    """row_max, sum_exp and sum_exp_logit of the two together."""
    higher = tl.maximum(row_max, part_max)
    shift = row_max - higher
    part_shift = part_max - higher
    scale = tl.exp2(shift * LOG2E)
    part_scale = tl.exp2(part_shift * LOG2E)
    sum_exp_logit = scale * (sum_exp_logit + shift * sum_exp) + part_scale * (
        part_sum_logit + part_shift * part_sum
    )
    return higher, scale * sum_exp + part_scale * part_sum, sum_exp_logit


@triton.jit
def halves(block):
    """The left and the right half of block [rows, columns]."""
    rows: tl.constexpr = block.shape[0]
    columns: tl.constexpr = block.shape[1] // 2
    return block.reshape(rows, 2, columns).permute(0, 2, 1).split()


@triton.jit
def tiles_kernel(
    # data
    x,
    weight,
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
    USES_DESCRIPTORS: tl.constexpr,
):
    """Write partials [3, tiles of the vocabulary, rows] and target_logit [rows].

    Logits are of x [rows, H] @ weight [V, H].T, which are descriptors or pointers. Partials are
    row_max, sum_exp and sum_exp_logit of a tile without the target.
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
    first = vocab_tile * BLOCK_VOCAB
    product = tl.zeros((BLOCK_ROWS, BLOCK_VOCAB), tl.float32)
    if USES_DESCRIPTORS:  # what lies outside is 0
        for start in range(0, hidden_size, BLOCK_HIDDEN):
            x_block = x.load([row_tile * BLOCK_ROWS, start])
            weight_block = weight.load([first, start])
            product = tl.dot(x_block, weight_block.T, product, input_precision="ieee")
    else:
        lane = tl.arange(0, BLOCK_HIDDEN)
        x_row = tl.minimum(row, rows - 1).to(tl.int64)
        weight_row = tl.minimum(first + tl.arange(0, BLOCK_VOCAB), vocab_size - 1).to(tl.int64)
        x_ptrs = x + x_row[:, None] * x_stride + lane[None, :]
        weight_ptrs = weight + weight_row[None, :] * weight_stride + lane[:, None]
        for start in range(0, hidden_size, BLOCK_HIDDEN):
            in_x = lane[None, :] < hidden_size - start
            in_weight = lane[:, None] < hidden_size - start
            x_block = tl.load(x_ptrs + start, mask=in_x, other=0.0)
            weight_block = tl.load(weight_ptrs + start, mask=in_weight, other=0.0)
            product = tl.dot(x_block, weight_block, product, input_precision="ieee")
    target = tl.load(target_ptr + row, mask=row < rows, other=-1) - vocab_start
    if BLOCK_VOCAB == 256:
        # Part after part: the exponentials of all would not fit the registers beside the products.
        left, right = halves(product)
        parts = halves(left) + halves(right)
    else:
        parts = (product,)
    width: tl.constexpr = BLOCK_VOCAB // len(parts)
    row_max = tl.full((BLOCK_ROWS,), LOWEST, tl.float32)
    sum_exp = tl.zeros((BLOCK_ROWS,), tl.float32)
    sum_exp_logit = tl.zeros((BLOCK_ROWS,), tl.float32)
    target_logit = tl.zeros((BLOCK_ROWS,), tl.float32)
    for index in tl.static_range(len(parts)):
        part_max, part_sum, part_sum_logit, part_target_logit = part_statistics(
            product=parts[index],
            first=first + index * width,
            target=target,
            bias_ptr=bias_ptr,
            vocab_size=vocab_size,
            softcap=softcap,
            inv_temperature=inv_temperature,
            HAS_BIAS=HAS_BIAS,
            HAS_SOFTCAP=HAS_SOFTCAP,
        )
        row_max, sum_exp, sum_exp_logit = merge_statistics(
            row_max, sum_exp, sum_exp_logit, part_max, part_sum, part_sum_logit
        )
        target_logit += part_target_logit
    is_in_tile = (target >= first) & (target < tl.minimum(first + BLOCK_VOCAB, vocab_size))
    tl.store(target_logit_ptr + row, target_logit, mask=(row < rows) & is_in_tile)
    partial_ptrs = partial_ptr + vocab_tile.to(tl.int64) * rows + row
    size = vocab_tiles.to(tl.int64) * rows
    tl.store(partial_ptrs, row_max, mask=row < rows)
    tl.store(partial_ptrs + size, sum_exp, mask=row < rows)
    tl.store(partial_ptrs + 2 * size, sum_exp_logit, mask=row < rows)


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
        row_max, sum_exp, sum_exp_logit = merge_statistics(
            row_max, sum_exp, sum_exp_logit, tile_max, tile_sum, tile_sum_logit
        )
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
    weight = head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
    tile = tile_of(x.device, x.dtype)
    if tile.USES_DESCRIPTORS and not (_has_aligned_rows(x) and _has_aligned_rows(weight)):
        tile = HOPPER_UNALIGNED
    vocab_size = len(head.weight)
    vocab_tiles = triton.cdiv(vocab_size, tile.BLOCK_VOCAB)
    partials = torch.empty(3, vocab_tiles, rows, dtype=torch.float32, device=x.device)
    statistics = torch.empty(4, rows, dtype=torch.float32, device=x.device)
    if head.group is not None:
        statistics[3].zero_()  # targets of other shards
    tiles_kernel[(triton.cdiv(rows, tile.BLOCK_ROWS) * vocab_tiles,)](
        x=_descriptor(x, tile.BLOCK_ROWS, tile),
        weight=_descriptor(weight, tile.BLOCK_VOCAB, tile),
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
