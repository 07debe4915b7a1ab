"""Padded batches for tests of Liger's loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from srt_kernels.testing import packed_rollouts

H = 35  # not a power of two
V = 211
LENGTHS = [3, 1, 5, 0, 7, 1, 9, 2]  # ragged: one is empty, two have one token
ADVANTAGES = [0.5, -0.5, 0.0, 0.7, 0.0, -1.2, 1.3, -0.4]
PER_TOKEN = (
    "selected_token_ids",
    "attention_mask",
    "ref_per_token_logps",
    "old_per_token_logps",
    "ref_input",
)
PER_BATCH = ("ref_weight", "ref_bias", "num_items_in_batch")

Result = tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]  # loss, metrics, gradients


@dataclass(frozen=True)
class Batch:
    """A padded batch with realistic logits. Tensors outside of the mask are arbitrary."""

    leaves: dict[str, Tensor]  # _input [B, T, H], lin_weight [V, H], perhaps bias [V]
    arguments: dict[str, Any]  # the other arguments of a loss

    def call(self, loss: torch.nn.Module, factor: float = 1.0) -> Result:
        """The gradients are of factor * loss."""
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in self.leaves.items()}
        value, metrics = loss(**leaves, **self.arguments)
        assert isinstance(metrics, tuple)
        assert not any(metric.requires_grad for metric in metrics)
        grads = torch.autograd.grad(value * factor, list(leaves.values()))
        return value.detach(), metrics, dict(zip(leaves, grads, strict=True))

    def to(self, dtype: torch.dtype) -> Batch:
        return replace(self, leaves={name: leaf.to(dtype) for name, leaf in self.leaves.items()})

    def alone(self, row: int) -> Batch:
        """One completion without padding and without holes."""
        is_token = self.arguments["attention_mask"][row] != 0

        def select(name: str, value: Any) -> Any:
            if not isinstance(value, Tensor) or name in PER_BATCH:
                return value
            is_wide_ratio = name == "vllm_is_ratio" and value.shape[1:] == is_token.shape
            if name in PER_TOKEN or is_wide_ratio:
                return value[row : row + 1, is_token]
            return value[row : row + 1]

        hidden = self.leaves["_input"][row : row + 1, is_token]
        arguments = {name: select(name, value) for name, value in self.arguments.items()}
        return Batch(leaves=self.leaves | {"_input": hidden}, arguments=arguments)


def make_mask(kind: str, width: int) -> Tensor:
    """[B, T] bool: padded at the end, with holes, full or empty."""
    padded = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    no_hole = torch.rand(padded.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    masks = {
        "padded": padded,
        "holes": padded & no_hole,
        "full": torch.ones_like(padded),
        "empty": torch.zeros_like(padded),
    }
    return masks[kind]


def make_batch(
    mask: str = "padded",
    width: int = 9,
    mask_dtype: torch.dtype = torch.int64,
    bias: bool = False,
    temperature: float = 1.0,
    old: bool = True,
    ref: str | None = "logps",
    vllm: str | None = None,
    num_items: int | Tensor | None = None,
    noise: float = 0.3,
    advantages: Sequence[float] = ADVANTAGES,
    seed: int = 0,
) -> Batch:
    """ref: "logps", "input" or None. vllm: the shape of vllm_is_ratio, "B", "B1", "BT" or None."""
    rows = len(LENGTHS)
    data = packed_rollouts(
        [width] * rows,
        hidden_size=H,
        vocab_size=V,
        with_bias=bias,
        temperature=temperature,
        noise=noise,
        seed=seed,
    )
    padded = (rows, width)
    # A slice of a wider tensor: not contiguous.
    hidden = torch.nn.functional.pad(data.hidden.reshape(*padded, H), (0, 0, 1, 1))[:, 1:-1]
    leaves = {"_input": hidden, "lin_weight": data.weight}
    if bias:
        leaves["bias"] = data.bias
    arguments = dict(
        selected_token_ids=data.targets.reshape(padded),
        attention_mask=make_mask(mask, width).to(mask_dtype),
        advantages=torch.tensor(advantages),
        num_items_in_batch=num_items,
    )
    if old:
        arguments["old_per_token_logps"] = data.old_logprobs.reshape(padded)
    if ref == "logps":
        arguments["ref_per_token_logps"] = data.ref_logprobs.reshape(padded)
    if ref == "input":
        noise_weight = torch.randn(V, H, generator=torch.Generator().manual_seed(seed))
        arguments["ref_input"] = hidden
        arguments["ref_weight"] = data.weight + 0.02 * noise_weight
        arguments["ref_bias"] = data.bias if bias else None
    if vllm:
        shape = {"B": (rows,), "B1": (rows, 1), "BT": padded}[vllm]
        # A fifth of the ratios is 0.
        ratio = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.4
        arguments["vllm_is_ratio"] = ratio.clamp(min=0)
    return Batch(leaves=leaves, arguments=arguments)
