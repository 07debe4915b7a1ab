"""PyTorch: what row_kernel.py does to a chunk's logits. Elementwise work goes over slabs that a cache holds.

The logits become e = exp(z - peak) in place, and those the gradient but for a factor of each row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srt_kernels.core.segments import ranges

SLAB = 8 << 20
LOWEST = (
    -1e30
)  # of the target's place among the others: exp of it is 0, and differences with it are finite


def _slabs(z: Tensor) -> list[slice]:
    return ranges(len(z), max(1, SLAB // (z.shape[1] * z.element_size())))


def _own(targets: Tensor, head) -> tuple[Tensor, Tensor]:
    """[C, 1] the target's place in this shard, 0 where it is in another one; whether it is in this one."""
    local = targets[:, None] - head.vocab_start
    here = (local >= 0) & (local < len(head.weight))
    return local.where(here, 0), here


def row_stats(z: Tensor, targets: Tensor, head) -> Tensor:
    """[4, C]: peak, s, dot, z of the target, of raw logits z [C, V], which become exp(z - peak), 0 at the target."""
    stats = z.new_empty(4, len(z), 1)
    place, here = _own(targets, head)
    for slab in _slabs(z):
        e, peak = z[slab], stats[0, slab]
        if head.bias is not None:
            e.add_(head.bias)
        if head.softcap is not None:
            e.div_(head.softcap).tanh_().mul_(head.softcap)
        if head.temperature != 1:
            e.div_(head.temperature)
        z_target = e.gather(1, place[slab])
        stats[3, slab] = z_target.clamp(min=LOWEST).where(here[slab], 0.0)
        e.scatter_(1, place[slab], z_target.masked_fill(here[slab], LOWEST))
        torch.amax(e, 1, keepdim=True, out=peak)
        peak.clamp_(min=LOWEST)
        u = e - peak
        if head.bias is not None:
            u.clamp_(
                min=-1e4
            )  # -inf masks a vocabulary entry and must not make 0 * inf below; exp(-1e4) is 0
        torch.exp(u, out=e)
        torch.sum(e, 1, keepdim=True, out=stats[1, slab])
        torch.sum(u.mul_(e), 1, keepdim=True, out=stats[2, slab])
    return stats.squeeze(2)


def row_dlogits(
    e: Tensor, targets: Tensor, stats, g: Tensor, h: Tensor | None, head, scale: None = None
) -> tuple[Tensor, Tensor]:
    """Turn e [C, V] in place into D and return it with f [C] such that f D is the gradient by the raw logits.

    scale is None: fp16 is cast up here.

    With g = dL/dlogprob and h = dL/dentropy [C]: dz_j = g (1[j is target] - p_j) - h p_j (log p_j + entropy), and
    p_j = e_j exp(peak - top) / total. Without h and softcap D is e but for the target's element: no pass over it.
    """
    stats = type(stats)(*(row.double() for row in vars(stats).values()))
    g, h = g.double(), None if h is None else h.double()
    place, here = _own(targets, head)
    shrink = (stats.peak - stats.top).exp().clamp(min=FLOOR)
    log_shrunk = stats.peak - stats.top - stats.total.log()  # log p = u + this
    if h is None and head.softcap is None:
        factor = -g * shrink / (stats.total * head.temperature)
        at_target = -stats.q
    else:
        h = torch.zeros_like(g) if h is None else h
        factor = -shrink / (stats.total * head.temperature)
        at_target = h * stats.logprobs.exp() * (stats.logprobs + stats.entropies) - g * stats.q
        if head.softcap is not None:  # d softcap(x) / dx = 1 - (softcap(x) / softcap)^2
            at_target = at_target * (
                1 - (stats.z_target * head.temperature / head.softcap).square()
            )
        offset, h, peak = (
            (g + h * (stats.entropies + log_shrunk)).to(e.dtype),
            h.to(e.dtype),
            stats.peak.to(e.dtype),
        )
        tiny = torch.finfo(e.dtype).tiny
        for slab in _slabs(e):
            d, column = e[slab], (slab, None)
            u = d.clamp(min=tiny).log_()
            d.mul_((u * h[column]).add_(offset[column]))
            if head.softcap is not None:
                capped = u.add_(peak[column]).mul_(head.temperature / head.softcap)
                d.mul_(capped.square_().neg_().add_(1))
    at_target = (at_target * stats.total / shrink)[:, None].to(e.dtype)
    e.scatter_(1, place, at_target.where(here, e.gather(1, place)))
    return e, factor.to(e.dtype)


FLOOR = 1e-30  # of a factor that is divided by: exp of a shard's peak below the peak of the whole vocabulary
