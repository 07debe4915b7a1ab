"""group_advantage: rewards -> advantages, per group; and the segment helpers that the other ops share."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("grpo", "mean", "rloo", "batch")
EPS = 1e-4  # added to a standard deviation, as in TRL


def expect(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError that names the argument unless `holds`."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def check_tensor(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple | str, device: torch.device):
    """Shape (None: any size), dtype ("float": any floating type) and device of an argument."""
    expect(isinstance(tensor, Tensor), name, "a tensor", type(tensor).__name__)
    fits = tensor.dim() == len(shape) and all(e in (None, s) for e, s in zip(shape, tensor.shape, strict=True))
    expect(fits, name, f"shape {list(shape)}".replace("None", "any"), list(tensor.shape))
    fits = tensor.is_floating_point() if dtypes == "float" else tensor.dtype in dtypes
    expect(fits, name, f"dtype {dtypes}", tensor.dtype)
    expect(tensor.device == device, name, f"device {device}", tensor.device)


def check_offsets(name: str, offsets: Tensor, total: int, device: torch.device) -> None:
    """[S+1] int32 or int64, from 0 to total, never decreasing. Values are checked on a CPU only (no host sync)."""
    check_tensor(name, offsets, (None,), (torch.int32, torch.int64), device)
    expect(len(offsets) >= 1, name, "at least one element", "none")
    if offsets.device.type == "cpu":
        expect(offsets[0].item() == 0, name, "0 first", offsets[0].item())
        expect(offsets[-1].item() == total, name, f"{total} last", offsets[-1].item())
        expect(bool((offsets.diff() >= 0).all()), name, "no decrease", offsets.tolist())


def segment_ids(offsets: Tensor, total: int) -> Tensor:
    """[S+1] offsets -> [total] int64, which segment each element is in. No host sync, as the size is known."""
    segments = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(segments, offsets.diff().long(), output_size=total)


def segment_reduce(values: Tensor, how: str, offsets: Tensor, initial: float = 0.0) -> Tensor:
    """[total] -> [S] fp64, `initial` where a segment is empty. In order of the elements, so the same on every run."""
    if len(offsets) == 1:
        return values.double()  # no segments, so no values either
    return torch.segment_reduce(values.double(), how, offsets=offsets.long(), initial=initial, unsafe=True)


def group_advantage(rewards: Tensor, cu_groups: Tensor, *, kind: str) -> Tensor:
    """Advantages [R] (fp32, or fp64 for fp64 rewards) of rewards [R] in groups cu_groups [P+1]. No host sync off a CPU.

    grpo: (r - mean) / (std + 1e-4), std over n - 1 (arXiv 2402.03300, as in TRL). mean: r - mean (arXiv 2503.20783).
    rloo: r minus the mean of the others, n / (n - 1) (r - mean) (arXiv 2402.14740). batch: r - mean, divided by the
    root mean square of that over the batch + 1e-4 (REINFORCE++ baseline, arXiv 2501.03262).

    A NaN reward gets 0 and counts nowhere. Groups of one and groups of equal rewards get exact zeros.
    Example: rewards [1, 1, 0, 1, 1], cu_groups [0, 3, 5], kind "mean": [1/3, 1/3, -2/3, 0, 0].
    Raises ValueError for a bad shape, dtype, device, offset or kind.
    """
    expect(kind in KINDS, "kind", f"one of {', '.join(KINDS)}", repr(kind))
    check_tensor("rewards", rewards, (None,), "float", rewards.device)
    check_offsets("cu_groups", cu_groups, len(rewards), rewards.device)
    group, known = segment_ids(cu_groups, len(rewards)), ~rewards.isnan()
    values = rewards.double().where(known, 0.0)
    count = segment_reduce(known, "sum", cu_groups)[group]
    highest = segment_reduce(values.where(known, -torch.inf), "max", cu_groups, -torch.inf)[group]
    lowest = segment_reduce(values.where(known, torch.inf), "min", cu_groups, torch.inf)[group]
    # The mean of equal rewards need not be that reward (3 x 0.1): compare the rewards themselves.
    counts = known & (highest > lowest)
    centred = values - segment_reduce(values, "sum", cu_groups)[group] / count.clamp(min=1)
    centred = centred.where(counts, 0.0)
    if kind == "grpo":
        variance = segment_reduce(centred.square(), "sum", cu_groups)[group] / (count - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + EPS)
    elif kind == "rloo":
        centred = centred * count / (count - 1).clamp(min=1)
    elif kind == "batch":
        centred = centred / ((centred.square().sum() / known.sum().clamp(min=1)).sqrt() + EPS)
    return centred.to(torch.promote_types(rewards.dtype, torch.float32))
