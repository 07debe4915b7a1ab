"""linear_logprob: hidden states and LM head -> log-prob and entropy of each target, never an [N, V] tensor.

The chunked algorithm that linear_policy_loss shares. A chunk of C rows makes its logits by one GEMM, in fp32. They are
turned in place into e = exp(z - max), then, where a gradient is asked for, into s dz (s the sum of e), and two GEMMs
make dX and dW of that: one [C, V] buffer in all. Elementwise work goes over slabs of it that a cache holds.

Operands narrower than fp32 are cast up: a chunk's hidden rows as they come, the weight once per call. That copy takes
4 V H bytes, as the fp32 accumulator of dW does anyway; a bf16 GEMM with bf16 logits, the alternative on a CPU, costs
0.03 nats rms in log-probs. A weight wider than the hidden states is first rounded to their type, as autocast does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from .group_advantage import check_tensor, expect

# Bytes of logits in a chunk (large enough for the GEMMs) and in a slab. On a CPU, one thread, H = 576, V = 49152,
# N = 512: 0.77 s with slabs of 1 to 16 MiB, 0.83 s without, 0.96 s with autograd over [N, V]. Small slabs mean many
# parallel regions, and where other processes hold the cores each waits for a thread: 1 MiB took 5.8 s there, 16 1.3 s.
CPU_CHUNK, CPU_SLAB = 64 << 20, 16 << 20
GPU_CHUNK, GPU_SLAB = 2 << 30, 256 << 20

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]  # of hidden [M, H], weight [V, H], bias [V]


@dataclass(frozen=True, kw_only=True)
class Head:
    """An LM head over the rows it is asked about: z = softcap(hidden[rows] @ weight.T + bias) / temperature."""

    hidden: Tensor  # [M, H] as given
    weight: Tensor  # [V, H] compute dtype (fp32, or fp64 for fp64 hidden states)
    bias: Tensor | None  # [V] compute dtype
    targets: Tensor  # [n] int64
    rows: Tensor | None  # [n] int64, None: row i is that of target i
    temperature: float
    softcap: float | None
    chunk: int  # rows of a chunk
    slab: int  # rows of a slab

    def select(self, index: Tensor) -> Head:
        """The same head over targets[index]."""
        return replace(self, targets=self.targets[index], rows=index if self.rows is None else self.rows[index])


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Of a chunk of C rows, each [C]. e = exp(z - peak); s sums e, s_others without the target."""

    peak: Tensor
    s: Tensor
    s_others: Tensor
    e_target: Tensor
    logprobs: Tensor
    entropies: Tensor


def make_head(hidden, weight, targets, temperature, bias, softcap, row_index, chunk_rows) -> Head:
    """Check the arguments of an LM head and cast weight and bias for the GEMMs."""
    _check_head(hidden, weight, targets, temperature, bias, softcap, row_index, chunk_rows)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    on_cpu, row_bytes = hidden.device.type == "cpu", len(weight) * dtype.itemsize
    chunk = chunk_rows or max(1, (CPU_CHUNK if on_cpu else GPU_CHUNK) // row_bytes)
    rounded = weight.detach().to(hidden.dtype) if weight.dtype.itemsize > hidden.dtype.itemsize else weight.detach()
    return Head(
        hidden=hidden.detach(),
        weight=rounded.to(dtype),
        bias=None if bias is None else bias.detach().to(dtype),
        targets=targets,
        rows=row_index,
        temperature=temperature,
        softcap=softcap,
        chunk=chunk,
        slab=max(1, (CPU_SLAB if on_cpu else GPU_SLAB) // row_bytes),
    )


def _check_head(hidden, weight, targets, temperature, bias, softcap, row_index, chunk_rows) -> None:
    device = hidden.device
    check_tensor("hidden", hidden, (None, None), "float", device)
    check_tensor("weight", weight, (None, hidden.shape[1]), "float", device)
    check_tensor("targets", targets, (None,), (torch.int64,), device)
    expect(len(weight) > 0, "weight", "at least one row", 0)
    if row_index is None:
        expect(len(hidden) == len(targets), "hidden", f"{len(targets)} rows without row_index", len(hidden))
    else:
        check_tensor("row_index", row_index, (len(targets),), (torch.int64,), device)
    if bias is not None:
        check_tensor("bias", bias, (len(weight),), "float", device)
    expect(0 < temperature < float("inf"), "temperature", "a finite number above 0", temperature)
    expect(softcap is None or 0 < softcap < float("inf"), "softcap", "None or a finite number above 0", softcap)
    expect(chunk_rows is None or chunk_rows >= 1, "chunk_rows", "None or at least 1", chunk_rows)
    if device.type == "cpu" and len(targets):  # elsewhere the look at the values would be a host sync
        for name, index, size in (("targets", targets, len(weight)), ("row_index", row_index, len(hidden))):
            if index is not None:
                low, high = (bound.item() for bound in index.aminmax())
                expect(low >= 0 and high < size, name, f"values in [0, {size})", f"{low} to {high}")


def _exponentials_(z: Tensor, targets: Tensor, head: Head) -> Stats:
    """Turn raw logits [C, V] in place into e = exp(z - peak)."""
    size = len(z)
    peak, s_others, dot, u_target, e_target = (z.new_empty(size, 1) for _ in range(5))
    scratch = z.new_empty(min(head.slab, size), z.shape[1])
    for start in range(0, size, head.slab):
        slab = slice(start, min(start + head.slab, size))
        e, target = z[slab], targets[slab, None]
        u = scratch[: len(e)]
        if head.bias is not None:
            e.add_(head.bias)
        if head.softcap is not None:
            e.div_(head.softcap).tanh_().mul_(head.softcap)
        if head.temperature != 1:
            e.div_(head.temperature)
        torch.amax(e, 1, keepdim=True, out=peak[slab])
        torch.sub(e, peak[slab], out=u)
        if head.bias is not None:
            u.clamp_(min=-1e4)  # -inf masks a vocabulary entry and must not make 0 * inf below; exp(-1e4) is 0
        torch.exp(u, out=e)
        torch.gather(u, 1, target, out=u_target[slab])
        torch.gather(e, 1, target, out=e_target[slab])
        e.scatter_(1, target, 0.0)
        torch.sum(e, 1, keepdim=True, out=s_others[slab])
        torch.sum(u.mul_(e), 1, keepdim=True, out=dot[slab])
        e.scatter_(1, target, e_target[slab])
    s = s_others + e_target
    # Not u_target - log(s): where the target has nearly all of the mass, 1 - p is below fp32's resolution of p.
    logprobs = -softplus(s_others.log() - u_target)
    entropies = s.log() - (dot + e_target * u_target) / s
    vectors = dict(peak=peak, s=s, s_others=s_others, e_target=e_target, logprobs=logprobs, entropies=entropies)
    return Stats(**{name: vector.squeeze(1) for name, vector in vectors.items()})


def _dlogits_(e: Tensor, targets: Tensor, stats: Stats, g: Tensor, h: Tensor | None, head: Head) -> Tensor:
    """Turn e [C, V] in place into D and return f [C] such that f D is the gradient by the raw logits.

    With g = dL/dlogprob and h = dL/dentropy [C]: dz_j = g (1[j is target] - p_j) - h p_j (log p_j + entropy).
    Without h and softcap D is e but for the target's element, e_target - s = -s_others, and g goes into f: no pass.
    """
    if h is None and head.softcap is None:
        e.scatter_(1, targets[:, None], -stats.s_others[:, None])
        return -g / (stats.s * head.temperature)
    h = torch.zeros_like(g) if h is None else h
    at_target = h * stats.e_target * (stats.logprobs + stats.entropies) - g * stats.s_others
    offset = g + h * (stats.entropies - stats.s.log())
    tiny = torch.finfo(e.dtype).tiny
    for start in range(0, len(e), head.slab):
        slab = slice(start, start + head.slab)
        d = e[slab]
        u = d.clamp(min=tiny).log_()
        d.mul_((u * h[slab, None]).add_(offset[slab, None]))
        d.scatter_(1, targets[slab, None], at_target[slab, None])
        if head.softcap is not None:  # d softcap(x) / dx = 1 - (softcap(x) / softcap)^2
            capped = u.add_(stats.peak[slab, None]).mul_(head.temperature / head.softcap)
            d.mul_(capped.square_().neg_().add_(1))
    return -1 / (stats.s * head.temperature)


def _add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """total[rows] += values, in a fixed order: index_add_ has one on a CPU only, and index_put_ on a GPU only."""
    if total.device.type == "cpu":
        total.index_add_(0, rows, values)
    else:
        total.index_put_((rows,), values, accumulate=True)


def _accumulate(grads: Grads, head: Head, part: slice, x: Tensor, d: Tensor, factor: Tensor) -> None:
    """Add a chunk to the gradients that are wanted. x [C, H], d [C, V]; chunk after chunk, so in a fixed order."""
    dx, dw, dbias = grads
    if dx is not None:
        rows = (d @ head.weight).mul_(factor[:, None])
        if head.rows is None:
            dx[part] = rows
        else:
            _add_rows(dx, head.rows[part], rows)
    if dw is not None:
        scaled = x * factor[:, None]
        if part.start == 0:
            torch.mm(d.t(), scaled, out=dw)
        else:
            dw.addmm_(d.t(), scaled)
    if dbias is not None:
        dbias.addmv_(d.t(), factor)


def _empty_grads(head: Head, wants: tuple[bool, bool, bool]) -> Grads:
    """Accumulators in the compute dtype. dX of rows that follow the targets is written once, in its own dtype."""
    dx_dtype = head.hidden.dtype if head.rows is None else head.weight.dtype
    dx = torch.zeros_like(head.hidden, dtype=dx_dtype) if wants[0] else None
    dw = None
    if wants[1]:
        dw = torch.empty_like(head.weight) if len(head.targets) else torch.zeros_like(head.weight)
    return dx, dw, torch.zeros_like(head.weight[:, 0]) if wants[2] else None


@torch.no_grad()
def head_pass(
    head: Head,
    token_grads: Callable[[slice, Tensor], tuple[Tensor, Tensor | None]] | None = None,
    wants: tuple[bool, bool, bool] = (False, False, False),
) -> tuple[Tensor, Tensor, Grads]:
    """Log-probs [n], entropies [n], and the gradients that `wants` names (hidden, weight, bias), chunk by chunk.

    token_grads(part, log-probs of the part) -> dL/dlogprob, dL/dentropy (or None) of the part. One GEMM without it;
    with it one more for dX and one for dW. dX comes in hidden's dtype, dW and dbias in the compute dtype.
    """
    total, device = len(head.targets), head.hidden.device
    logprobs, entropies = head.weight.new_empty(total), head.weight.new_empty(total)
    grads = _empty_grads(head, wants)
    with torch.autocast(device.type, enabled=False):  # it would send the GEMMs to bf16
        buffer = head.weight.new_empty(min(head.chunk, total), len(head.weight))
        for start in range(0, total, head.chunk):
            part = slice(start, min(start + head.chunk, total))
            x = (head.hidden[part] if head.rows is None else head.hidden[head.rows[part]]).to(head.weight.dtype)
            z = torch.mm(x, head.weight.t(), out=buffer[: len(x)])
            stats = _exponentials_(z, head.targets[part], head)
            logprobs[part], entropies[part] = stats.logprobs, stats.entropies
            if token_grads is not None:
                factor = _dlogits_(z, head.targets[part], stats, *token_grads(part, stats.logprobs), head)
                _accumulate(grads, head, part, x, z, factor)
    dx, dw, dbias = grads
    return logprobs, entropies, (None if dx is None else dx.to(head.hidden.dtype), dw, dbias)


class _LinearLogprob(torch.autograd.Function):
    """Keeps the inputs only; backward makes the logits again (four GEMMs in all)."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, row_index, temperature, softcap, chunk_rows):
        head = make_head(hidden, weight, targets, temperature, bias, softcap, row_index, chunk_rows)
        ctx.save_for_backward(hidden, weight, bias, targets, row_index)
        ctx.settings = (temperature, softcap, chunk_rows)
        ctx.set_materialize_grads(False)
        logprobs, entropies, _ = head_pass(head)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx, dlogprobs, dentropies):
        hidden, weight, bias, targets, row_index = ctx.saved_tensors
        temperature, softcap, chunk_rows = ctx.settings
        head = make_head(hidden, weight, targets, temperature, bias, softcap, row_index, chunk_rows)
        g = torch.zeros_like(targets, dtype=head.weight.dtype) if dlogprobs is None else dlogprobs

        def token_grads(part, _):
            return g[part], None if dentropies is None else dentropies[part]

        _, _, (dx, dw, dbias) = head_pass(head, token_grads, tuple(ctx.needs_input_grad[:3]))
        dw = None if dw is None else dw.to(weight.dtype)
        return dx, dw, None if dbias is None else dbias.to(bias.dtype), None, None, None, None, None


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    row_index: Tensor | None = None,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of its distribution, [N] each, fp32 nats (fp64 for fp64 hidden states).

    hidden [M, H] and weight [V, H] of any floating type; targets [N] int64; bias [V]; row_index [N] int64: the hidden
    row of each target, repeats allowed (None: N = M, in order). softcap is the model's (Gemma 2, arXiv 2408.00118) and
    comes before temperature, as in a sampler. Differentiable once in hidden, weight and bias. chunk_rows: rows of
    logits at a time (None: 64 MiB of them on a CPU, 2 GiB elsewhere). Raises ValueError for bad shapes, dtypes and
    devices, and on a CPU for targets and rows out of range.

    A row's result depends on the other rows only through the CPU GEMM, whose kernel for a chunk may round differently
    with the number of rows: within the rounding of fp32 logits, and bitwise equal for the same call.
    """
    return _LinearLogprob.apply(hidden, weight, bias, targets, row_index, temperature, softcap, chunk_rows)
