"""Triton: log-probs and entropies of an LM head without logits in memory, for passes without gradient.

One GEMM. A tile of logits ends in the registers as one partial (peak, s, dot; as in row_kernel.py) for each row: running
statistics over the vocabulary would spill (kernel-notes), partials take 12 bytes per row and tile. A second kernel
combines a row's partials in order. Tiles and order do not depend on N, so a row's result depends on no other row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.core.backend import OPTIONS
from srt_kernels.lm_head.logits_kernel import LOG2E, LOWEST, logits_of

CHUNK = 1 << 14  # rows of partials at a time: 12 bytes x 1e3 tiles x 16384 rows = 200 MB


@dataclass(frozen=True)
class Tile:
    """Block sizes that compile without spills (tests/kernels/test_aot.py): rows, vocabulary, hidden; warps and stages."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int


HOPPER, AMPERE, SAFE = Tile(128, 128, 64, 8, 3), Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 2)
TILES = {90: HOPPER, 100: HOPPER, 103: HOPPER, 80: AMPERE}  # compute capability; others take SAFE


def tile_of(device: torch.device, dtype: torch.dtype) -> Tile:
    """For fp32 operands, which have no tensor cores in full precision, and for unknown GPUs: SAFE."""
    if device.type != "cuda" or dtype == torch.float32:
        return SAFE
    if torch.version.hip:
        return AMPERE if "gfx942" in torch.cuda.get_device_properties(device).gcnArchName else SAFE
    major, minor = torch.cuda.get_device_capability(device)
    return TILES.get(10 * major + minor, SAFE)


@triton.jit
def tiles_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    target_ptr,
    partial_ptr,
    z_target_ptr,
    N,
    V,
    H,
    x_stride,
    w_stride,
    vocab_start,
    softcap,
    inv_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """partial [3, tiles of the vocabulary, N]: peak, s, dot of x [N, H] @ w [V, H].T without the targets; z_target [N]."""
    # Eight tiles of rows share a tile of w while that is in the L2 cache.
    row_tiles, column_tiles = tl.cdiv(N, BM), tl.cdiv(V, BN)
    group = tl.program_id(0) // (8 * column_tiles)
    group_rows = tl.minimum(row_tiles - 8 * group, 8)
    place = tl.program_id(0) - 8 * group * column_tiles
    row_tile, column_tile = 8 * group + place % group_rows, place // group_rows
    rows, columns, ks = (
        row_tile * BM + tl.arange(0, BM),
        column_tile * BN + tl.arange(0, BN),
        tl.arange(0, BK),
    )
    x_ptrs = x_ptr + tl.minimum(rows, N - 1).to(tl.int64)[:, None] * x_stride + ks[None, :]
    w_ptrs = w_ptr + tl.minimum(columns, V - 1).to(tl.int64)[None, :] * w_stride + ks[:, None]
    product = tl.zeros((BM, BN), tl.float32)
    for k in range(0, H, BK):
        x = tl.load(x_ptrs + k, mask=ks[None, :] < H - k, other=0.0)
        w = tl.load(w_ptrs + k, mask=ks[:, None] < H - k, other=0.0)
        product = tl.dot(x, w, product, input_precision="ieee")
    target = tl.load(target_ptr + rows, mask=rows < N, other=-1) - vocab_start
    inside = (columns < V)[None, :] & (rows >= 0)[:, None]
    z = logits_of(
        product,
        bias_ptr,
        columns[None, :],
        (columns < V)[None, :],
        inside,
        softcap,
        inv_temperature,
        HAS_BIAS,
        HAS_SOFTCAP,
    )
    own = columns[None, :] == target[:, None]
    first = column_tile * BN
    here = (rows < N) & (target >= first) & (target < tl.minimum(first + BN, V))
    tl.store(z_target_ptr + rows, tl.sum(tl.where(own, z, 0.0), 1), mask=here)
    z = tl.where(own, LOWEST, z)
    peak = tl.max(z, 1)
    d = z - peak[:, None]
    e = tl.exp2(d * LOG2E)
    at = partial_ptr + column_tile.to(tl.int64) * N + rows
    size = column_tiles.to(tl.int64) * N
    tl.store(at, peak, mask=rows < N)
    tl.store(at + size, tl.sum(e, 1), mask=rows < N)
    tl.store(at + 2 * size, tl.sum(e * d, 1), mask=rows < N)


@triton.jit
def combine_kernel(partial_ptr, stats_ptr, N, tiles, BLOCK: tl.constexpr):
    """stats [3, N] of partial [3, tiles, N], tile after tile."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < N
    size = tiles * N  # below 2^31: N is at most CHUNK
    top = tl.full((BLOCK,), LOWEST, tl.float32)
    total_s = tl.zeros((BLOCK,), tl.float32)
    total_dot = tl.zeros((BLOCK,), tl.float32)
    at = partial_ptr + rows
    for _ in range(0, tiles):
        peak = tl.load(at, mask=inside, other=LOWEST)
        s = tl.load(at + size, mask=inside, other=0.0)
        dot = tl.load(at + 2 * size, mask=inside, other=0.0)
        higher = tl.maximum(top, peak)
        before, now = tl.exp2((top - higher) * LOG2E), tl.exp2((peak - higher) * LOG2E)
        total_dot = before * (total_dot + (top - higher) * total_s) + now * (
            dot + (peak - higher) * s
        )
        total_s = before * total_s + now * s
        top = higher
        at += N
    tl.store(stats_ptr + rows, top, mask=inside)
    tl.store(stats_ptr + N + rows, total_s, mask=inside)
    tl.store(stats_ptr + 2 * N + rows, total_dot, mask=inside)


def head_statistics(x: Tensor, targets: Tensor, head) -> Tensor:
    """[4, n] fp32, as row_kernel.row_stats has them, of hidden rows x [n, H] of the weight's dtype, n at most CHUNK."""
    total, tile, vocabulary = len(x), tile_of(x.device, x.dtype), len(head.weight)
    tiles = triton.cdiv(vocabulary, tile.BN)
    partial = torch.empty(3, tiles, total, dtype=torch.float32, device=x.device)
    stats = torch.empty(4, total, dtype=torch.float32, device=x.device)
    if head.group is not None:
        stats[3].zero_()  # a target of another shard
    weight = head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
    tiles_kernel[(triton.cdiv(total, tile.BM) * tiles,)](
        x,
        weight,
        head.bias,
        targets,
        partial,
        stats[3],
        total,
        vocabulary,
        x.shape[1],
        x.stride(0),
        weight.stride(0),
        head.vocab_start,
        head.softcap or 1.0,
        1 / head.temperature,
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=head.softcap is not None,
        **vars(tile),
        **OPTIONS,
    )
    combine_kernel[(triton.cdiv(total, 128),)](
        partial, stats, total, tiles, BLOCK=128, num_warps=4, **OPTIONS
    )
    return stats
