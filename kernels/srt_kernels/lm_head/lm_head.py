"""The LM head that linear_logprob and linear_policy_loss share: logits by chunks, their statistics, their gradient.

A chunk of C rows makes its logits by one GEMM in fp32. Where a gradient is asked for, they are overwritten by it, and
two GEMMs make dX and dW of that: one [C, V] buffer in all. rows of it go through row_kernel.py (Triton) or torch_rows.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import softplus

from srt_kernels.core.backend import use_triton
from srt_kernels.core.checks import check_range, check_tensor, expect
from srt_kernels.core.segments import ranges
from srt_kernels.lm_head import gemm

# Bytes of logits in a chunk and, on a CPU, in a slab that its caches hold. CPU, one thread, H = 576, V = 49152, N = 512:
# 0.77 s with slabs of 1 to 16 MiB, 0.83 s without, 0.96 s with autograd over [N, V]. Small slabs mean many parallel
# regions, and where other processes hold the cores each waits for a thread: 1 MiB took 5.8 s there, 16 1.3 s. Large ones
# are memory that glibc keeps: 16 MiB took as much time as 8 and 20 to 50 MiB more.
CPU_CHUNK = 96 << 20
GPU_CHUNK = 2 << 30


@dataclass(frozen=True, kw_only=True)
class LMHead:
    """An LM head over the rows it is asked about: z = softcap(hidden[rows] @ weight.T + bias) / temperature."""

    hidden: Tensor  # [M, H] as given
    weight: Tensor  # [V, H] in the dtype of the GEMMs' operands, which is hidden's but on ROCm
    bias: Tensor | None  # [V] compute dtype
    targets: Tensor  # [n] int64
    rows: Tensor | None  # [n] int64, None: row i is that of target i
    temperature: float
    softcap: float | None
    chunk: int  # rows of a chunk
    group: dist.ProcessGroup | None  # whose rank r holds the vocabulary from r V on
    vocab_start: int  # of this rank
    unique: bool  # no two targets have the same row

    @property
    def dtype(self) -> torch.dtype:
        """Of log-probs and accumulators."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @property
    def exact_in_bf16(self) -> bool:
        """The operands of the logits are bf16 numbers, whatever they are stored as."""
        return self.hidden.dtype == torch.bfloat16

    def select(self, index: Tensor) -> LMHead:
        """The same head over targets[index]."""
        return replace(
            self, targets=self.targets[index], rows=index if self.rows is None else self.rows[index]
        )

    def inputs(self, part: slice) -> Tensor:
        """[C, H] hidden rows for the GEMMs."""
        rows = self.hidden[part] if self.rows is None else self.hidden[self.rows[part]]
        return rows.to(self.weight.dtype).contiguous()


@dataclass(frozen=True)
class RowStatistics:
    """Of C rows, each [C], over the whole vocabulary."""

    peak: Tensor  # max z of this shard without the target
    top: Tensor  # max z
    total: Tensor  # sum exp(z - top)
    q: Tensor  # 1 - p of the target
    z_target: Tensor
    logprobs: Tensor
    entropies: Tensor


@dataclass(frozen=True, kw_only=True)
class KnownGradient:
    """Gradients of n rows that are known before their logits."""

    g: Tensor  # [n] dL/dlogprob
    h: Tensor | None  # [n] dL/dentropy
    objective = inputs = None
    row_local = True

    def grads(self, part: slice, logprobs: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.g[part], None if self.h is None else self.h[part]


class HeadGradients:
    """Accumulators for the gradients that `wants` names: of hidden [M, H], weight [V, H], bias [V]; else None."""

    def __init__(
        self,
        head: LMHead,
        wants: tuple[bool, bool, bool],
        largest: Tensor,
        dtypes: list[torch.dtype],
    ):
        """largest: 0-dim, about the largest |dL/dlogprob|, for the scale of dlogits in fp16. dtypes: that finish returns."""
        dtype, device = head.dtype, head.hidden.device
        self.dtypes = dtypes
        once = head.unique and head.group is None and head.hidden.dtype != torch.float16
        self.dx = (
            head.hidden.new_zeros(head.hidden.shape, dtype=head.hidden.dtype if once else dtype)
            if wants[0]
            else None
        )
        # By parts where a CPU rounds them at the end: each goes when it is rounded, and never are both there whole.
        by_parts = device.type == "cpu" and dtypes[1].itemsize < dtype.itemsize
        self.parts = gemm.parts(head.weight) if by_parts else [slice(0, len(head.weight))]
        width = head.weight.shape[1]
        self.dw = (
            [torch.empty(p.stop - p.start, width, dtype=dtype, device=device) for p in self.parts]
            if wants[1]
            else []
        )
        self.dbias = torch.zeros(len(head.weight), dtype=dtype, device=device) if wants[2] else None
        in_fp16 = (
            use_triton(head.weight) and head.weight.dtype == torch.float16
        )  # else dlogits stay in fp32
        self.scale = _fp16_scale(largest) if in_fp16 else None
        self.started = False

    def add(self, head: LMHead, part: slice, x: Tensor, d: Tensor, factor: Tensor | None) -> None:
        """Add a chunk: x [C, H], d [C, V], to be multiplied by factor [C]. In order of the chunks: no atomics."""
        if self.dx is not None:
            rows = gemm.times_weight(d, head.weight, head.exact_in_bf16, self.dx.dtype)
            rows = (rows if factor is None else rows.mul_(factor[:, None])).to(self.dx.dtype)
            if head.rows is None:
                self.dx[part] = rows
            elif head.unique:
                self.dx.index_copy_(0, head.rows[part], rows)
            elif rows.device.type == "cpu":  # each has a fixed order on its device only
                self.dx.index_add_(0, head.rows[part], rows)
            else:
                self.dx.index_put_((head.rows[part],), rows, accumulate=True)
        if self.dw:
            scaled = x if factor is None else x * factor[:, None]
            for dw, place in zip(self.dw, self.parts, strict=True):
                gemm.add_outer_(dw, d[:, place], scaled, self.started, head.exact_in_bf16)
        if self.dbias is not None:
            self.dbias += d.sum(0, dtype=head.dtype) if factor is None else d.t() @ factor
        self.started = True

    def _joined(self) -> Tensor | None:
        """dW; in its dtype where it was kept by parts."""
        if not self.started:
            for dw in self.dw:
                dw.zero_()
        if len(self.dw) < 2:
            return self.dw.pop() if self.dw else None
        joined = self.dw[0].new_empty(
            self.parts[-1].stop, self.dw[0].shape[1], dtype=self.dtypes[1]
        )
        for part in reversed(self.parts):
            joined[part] = self.dw.pop()
        return joined

    def finish(self, head: LMHead) -> tuple[Tensor, Tensor, Tensor]:
        """dX (summed over the shards), dW and dbias in their dtypes; empty where not wanted."""
        grads = [
            head.hidden.new_empty(0) if grad is None else grad
            for grad in (self.dx, self._joined(), self.dbias)
        ]
        if self.scale is not None:
            for grad in grads:
                grad.div_(self.scale)
        if self.dx is not None and head.group is not None:
            dist.all_reduce(self.dx, group=head.group)
        return tuple(grad.to(dtype) for grad, dtype in zip(grads, self.dtypes, strict=True))


def _fp16_scale(largest: Tensor) -> Tensor:
    """0-dim fp32, a power of two that brings `largest` to between 8 and 16: fp16 ends at 6e-8 and at 65504."""
    exponent = torch.frexp(largest.float())[1]
    return torch.ldexp(torch.ones_like(largest, dtype=torch.float32), (4 - exponent).clamp(-40, 40))


def make_head(
    hidden,
    weight,
    targets,
    temperature,
    bias,
    softcap,
    row_index,
    chunk_rows,
    group: dist.ProcessGroup | None = None,
    forward_only: bool = False,
) -> LMHead:
    """Check the arguments of an LM head and cast weight and bias for the GEMMs (forward_only: our own on any GPU)."""
    world, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    _check_head(hidden, weight, targets, temperature, bias, softcap, row_index, chunk_rows, world)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    narrow = hidden.dtype if forward_only and hidden.is_cuda else gemm.operand_dtype(hidden)
    # A weight wider than the hidden states is first rounded to their type, as autocast does.
    rounded = (
        weight.detach().to(hidden.dtype)
        if weight.dtype.itemsize > hidden.dtype.itemsize
        else weight.detach()
    )
    row_bytes = len(weight) * dtype.itemsize
    budget = GPU_CHUNK if hidden.is_cuda else CPU_CHUNK
    rows = max(1, budget // row_bytes)
    if hidden.is_cuda:  # so that chunks begin where loads are aligned, whatever V
        rows = max(128, rows // 128 * 128)
    return LMHead(
        hidden=hidden.detach(),
        weight=rounded.to(narrow),
        bias=None if bias is None else bias.detach().to(dtype).contiguous(),
        targets=targets.contiguous(),
        rows=row_index,
        temperature=temperature,
        softcap=softcap,
        chunk=chunk_rows or rows,
        group=group,
        vocab_start=rank * len(weight),
        unique=row_index is None,
    )


def _check_head(
    hidden, weight, targets, temperature, bias, softcap, row_index, chunk_rows, world
) -> None:
    device = hidden.device
    check_tensor("hidden", hidden, (None, None), "float", device)
    check_tensor("weight", weight, (None, hidden.shape[1]), "float", device)
    check_tensor("targets", targets, (None,), (torch.int64,), device)
    expect(len(weight) > 0, "weight", "at least one row", 0)
    if row_index is None:
        expect(
            len(hidden) == len(targets),
            "hidden",
            f"{len(targets)} rows without row_index",
            len(hidden),
        )
    else:
        check_tensor("row_index", row_index, (len(targets),), (torch.int64,), device)
        check_range("row_index", row_index, len(hidden))
    if bias is not None:
        check_tensor("bias", bias, (len(weight),), "float", device)
    expect(0 < temperature < float("inf"), "temperature", "a finite number above 0", temperature)
    expect(
        softcap is None or 0 < softcap < float("inf"),
        "softcap",
        "None or a finite number above 0",
        softcap,
    )
    expect(chunk_rows is None or chunk_rows >= 1, "chunk_rows", "None or at least 1", chunk_rows)
    check_range("targets", targets, len(weight) * world)


def check_finite(head: LMHead, logprobs: Tensor) -> None:
    """Raise ValueError that names the first hidden row that made a log-prob nan. A host sync: for CPU tensors."""
    bad = logprobs.isnan().nonzero()
    if len(bad):
        row = bad[0, 0].item() if head.rows is None else head.rows[bad[0, 0]].item()
        fault = "hidden" if not head.hidden[row].isfinite().all() else "weight or bias"
        expect(
            False,
            fault,
            "finite values",
            f"nan or inf in what makes the logits of hidden row {row}",
        )


def _engine(head: LMHead):
    if use_triton(head.weight):
        from srt_kernels.lm_head import logits_kernel as row_kernel

        return row_kernel
    from srt_kernels.lm_head import logits_torch as torch_rows

    return torch_rows


def normalise(statistics: Tensor, group: dist.ProcessGroup | None) -> RowStatistics:
    """RowStatistics of [4, C]: peak, s, dot, z_target as in row_kernel.py, each of a shard; z_target is 0 in all but one.

    Log-prob as -softplus(log s + peak - z_target): right also where 1 - p is below fp32's resolution of p. In fp64, as
    vectorised functions of fp32 on a CPU round the last few elements of a tensor otherwise than the rest.
    """
    dtype = statistics.dtype
    peak, s, dot, z_target = statistics.double()
    highest = peak
    if group is not None:
        highest = peak.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, group)
        below, shrink = peak - highest, (peak - highest).exp()
        sums = torch.stack([s * shrink, (dot + below * s) * shrink, z_target])
        dist.all_reduce(sums, group=group)
        s, dot, z_target = sums
    x = highest + s.log() - z_target
    top = torch.maximum(highest, z_target)
    below, others, own = highest - top, (highest - top).exp(), (z_target - top).exp()
    total = s * others + own
    entropies = total.log() - ((dot + below * s) * others + own * (z_target - top)) / total
    rows = (peak, top, total, x.sigmoid(), z_target, -softplus(x), entropies)
    return RowStatistics(*(row.to(dtype) for row in rows))


@torch.no_grad()
def head_logprobs(head: LMHead) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [n], one GEMM."""
    total = len(head.targets)
    logprobs, entropies = (
        torch.empty(total, dtype=head.dtype, device=head.hidden.device) for _ in range(2)
    )
    fused = use_triton(head.weight)
    if fused:
        from srt_kernels.lm_head.logprob_kernel import CHUNK, head_statistics
    with torch.autocast(head.hidden.device.type, enabled=False):  # it would send the GEMMs to bf16
        for part in ranges(total, CHUNK if fused else head.chunk):
            x, targets = head.inputs(part), head.targets[part]
            if fused:
                statistics = head_statistics(x, targets, head)
            else:
                statistics = _engine(head).row_stats(gemm.logits(x, head), targets, head)
            stats = normalise(statistics, head.group)
            logprobs[part], entropies[part] = stats.logprobs, stats.entropies
    return logprobs, entropies


@torch.no_grad()
def head_pass(
    head: LMHead, source, grads: HeadGradients, parts: Iterable[slice] | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [n], and gradients into `grads`, chunk by chunk: one GEMM, and one for each gradient.

    source.grads(part, log-probs of the part) -> dL/dlogprob, dL/dentropy (or None) of the part. parts: the chunks.
    """
    total, engine = len(head.targets), _engine(head)
    logprobs, entropies = (
        torch.empty(total, dtype=head.dtype, device=head.hidden.device) for _ in range(2)
    )
    one_kernel = use_triton(head.weight) and source.row_local and head.group is None
    parts = list(ranges(total, head.chunk) if parts is None else parts)
    with torch.autocast(head.hidden.device.type, enabled=False):
        buffer = gemm.buffer(head, max((part.stop - part.start for part in parts), default=0))
        for part in parts:
            x, targets = head.inputs(part), head.targets[part]
            z = gemm.logits(x, head, buffer)
            if one_kernel:
                d, factor = engine.row_fused(
                    z, targets, source, part, logprobs[part], entropies[part], head, grads.scale
                )
            else:
                stats = normalise(engine.row_stats(z, targets, head), head.group)
                logprobs[part], entropies[part] = stats.logprobs, stats.entropies
                g, h = source.grads(part, stats.logprobs)
                if h is None and not g.is_cuda and not g.any():
                    continue  # all clipped; on a GPU the look would be a host sync
                d, factor = engine.row_dlogits(z, targets, stats, g, h, head, grads.scale)
            grads.add(head, part, x, d, factor)
            del z, d  # before the next chunk takes as much
    return logprobs, entropies
