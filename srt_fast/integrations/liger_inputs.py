"""Arguments of Liger's fused linear GRPO loss: checks, and the tokens that are computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from srt_fast.integrations.padded import Packed, pack_per_token
from srt_kernels.core.checks import check_tensor, check_tensors, expect
from srt_kernels.core.segments import segment_ids


@dataclass(frozen=True, kw_only=True)
class ComputedTokens:
    """The N tokens of a padded batch [B, T] that are computed.

    Of the mask [[1, 1, 0], [0, 0, 0], [1, 0, 1]]: packed is [0, 1, 6, 8] and [0, 2, 2, 4],
    completion_index is [0, 0, 2, 2].
    """

    shape: torch.Size  # B, T
    packed: Packed  # row_index [N], cu_seqlens (pack_per_token)
    completion_index: Tensor  # [N] int64, the completion of each token

    @classmethod
    def of(cls, mask: Tensor) -> ComputedTokens:
        """mask [B, T] bool. Synchronises with the host once, for the number of tokens."""
        packed = pack_per_token(mask)
        completion_index = segment_ids(packed.cu_seqlens, len(packed.row_index))
        return cls(shape=mask.shape, packed=packed, completion_index=completion_index)

    def gather(self, padded: Tensor) -> Tensor:
        """[B, T] or [B, 1] -> [N], detached."""
        return padded.detach().expand(self.shape).flatten()[self.packed.row_index]


def check_batch(hidden: Tensor, ids: Tensor, mask: Tensor, advantages: Tensor) -> None:
    """Check _input, selected_token_ids, attention_mask and advantages. Raises ValueError."""
    expect(isinstance(hidden, Tensor), "_input", "a tensor", type(hidden).__name__)
    expect(isinstance(mask, Tensor), "attention_mask", "a tensor", type(mask).__name__)
    device = hidden.device
    shape = tuple(hidden.shape[:2])
    check_tensor("_input", hidden, (None, None, None), "float", device)
    check_tensor("selected_token_ids", ids, shape, (torch.int64, torch.int32), device)
    check_tensor("attention_mask", mask, shape, (mask.dtype,), device)
    _check_all("attention_mask", (mask == 0) | (mask == 1), "0 or 1 everywhere")
    check_tensor("advantages", advantages, shape[:1], "float", device)


def check_logprobs(hidden: Tensor, ref: Tensor | None, old: Tensor | None) -> None:
    """Check ref_per_token_logps and old_per_token_logps. Raises ValueError."""
    shape = tuple(hidden.shape[:2])
    for name, logprobs in (("ref_per_token_logps", ref), ("old_per_token_logps", old)):
        if logprobs is not None:
            check_tensor(name, logprobs, shape, "float", hidden.device)


def _check_all(name: str, is_valid: Tensor, expected: str) -> None:
    """ValueError on a CPU. An assertion on other devices, where a look synchronises the host."""
    if is_valid.is_cpu:
        invalid = int((~is_valid).sum())
        expect(invalid == 0, name, expected, f"{invalid} other values")
    else:
        message = f"{name}: expected {expected}"
        torch._assert_async(is_valid.all(), message)  # pyright: ignore[reportPrivateImportUsage]


def as_columns(ratio: Tensor | None, mask: Tensor) -> Tensor | None:
    """vllm_is_ratio [B], [B, 1] or [B, T] -> [B, 1] or [B, T]."""
    if ratio is None:
        return None
    shapes = [list(mask.shape[:1]), [len(mask), 1], list(mask.shape)]
    check_tensors(mask.device, vllm_is_ratio=ratio)
    expected = f"one of the shapes {', '.join(str(shape) for shape in shapes)}"
    got = list(ratio.shape)
    expect(got in shapes, "vllm_is_ratio", expected, got)
    columns = ratio[:, None] if ratio.dim() == 1 else ratio
    is_ratio = columns.isfinite() & (columns >= 0)
    _check_all("vllm_is_ratio", is_ratio | (mask == 0), "finite, at least 0 everywhere")
    return columns


def tokens_per_rank(mask: Tensor, num_items_in_batch: float | Tensor | None) -> Tensor:
    """0-dim fp64: the tokens of the step, or of this call on all ranks, per rank."""
    world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if num_items_in_batch is not None:
        tokens = torch.as_tensor(num_items_in_batch, dtype=torch.float64, device=mask.device)
        got = f"shape {list(tokens.shape)}"
        expect(tokens.numel() == 1, "num_items_in_batch", "one number", got)
        return tokens.reshape(()) / world_size
    tokens = mask.sum().double()
    if world_size > 1:
        dist.all_reduce(tokens)
    return tokens / world_size
