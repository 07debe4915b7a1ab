"""Reads a model's ModelCost from its modules, and checks it against a counted pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srt_fast.model.attention import ATTENTION, packed_attention
from srt_fast.model.policy import Policy
from srt_fast.utilization.flops import Attention, ModelCost

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Fields of a configuration that hold the number of experts."""
PROBE_TOKENS = 8


class UnknownCostError(ValueError):
    """The model's FLOPs are not understood."""


def model_cost(policy: Policy) -> ModelCost:
    """The cost of a policy. Runs its body on a few tokens. Collective.

    The rule: a matrix outside of an embedding multiplies each token once; of a stack of experts,
    num_experts_per_tok do. One counted pass must have exactly the products of that rule. Attention
    is read from the calls of that pass.

    Raises UnknownCostError for parameters of other shapes, and for another count.
    """
    model = policy.model
    matrices, experts = _matrices(model.base_model)
    top_k = _experts_per_token(model.config, experts)
    attention, counted = _count_pass(policy)
    dense = sum(matrix.numel() for matrix in matrices)
    sparse = sum(top_k * matrix[0].numel() for matrix in experts)
    # torch does not count the grouped product of experts.
    expected = {2 * PROBE_TOKENS * dense, 2 * PROBE_TOKENS * (dense + sparse)}
    if counted not in expected:
        raise UnknownCostError(
            f"expected {' or '.join(map(str, sorted(expected)))} FLOPs in the linear layers of "
            f"{PROBE_TOKENS} tokens, counted {counted}"
        )
    head = policy.head.weight
    return ModelCost(
        weights=dense + sparse,
        trained_weights=sum(matrix.numel() for matrix in matrices if matrix.requires_grad)
        + sum(top_k * matrix[0].numel() for matrix in experts if matrix.requires_grad),
        head_weights=head.numel(),
        trained_head_weights=head.numel() if head.requires_grad else 0,
        attention=attention,
    )


def largest_matrix(policy: Policy) -> tuple[int, int]:
    """(rows, columns) of the largest matrix of the body."""
    matrices, experts = _matrices(policy.model.base_model)
    shapes = [tuple(matrix.shape) for matrix in matrices]
    shapes += [tuple(matrix.shape[1:]) for matrix in experts]
    rows, columns = max(shapes, key=lambda shape: shape[0] * shape[1])
    return rows, columns


def _matrices(body: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices [rows, columns] of a model's body, and its experts [experts, rows, columns]."""
    matrices: list[Tensor] = []
    experts: list[Tensor] = []
    idle = _idle_adapters(body)
    for module in body.modules():
        if isinstance(module, nn.Embedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in idle:
                continue
            if not parameter.is_floating_point():
                raise UnknownCostError(
                    f"expected weights of floats, got {name} of {type(module).__name__} in "
                    f"{parameter.dtype}"
                )
            if parameter.ndim == 2:
                matrices.append(parameter)
            elif parameter.ndim == 3:
                experts.append(parameter)
            elif parameter.ndim > 3:
                raise UnknownCostError(
                    f"expected matrices, got {name} of {type(module).__name__} with "
                    f"{parameter.ndim} dimensions"
                )
    return matrices, experts


def _idle_adapters(body: nn.Module) -> set[int]:
    """Ids of the parameters of peft's adapters that are not active, such as a teacher's."""
    idle = set()
    for layer in body.modules():
        for name in getattr(layer, "adapter_layer_names", ()):  # a layer of peft
            adapters = getattr(layer, name, None)
            if isinstance(adapters, nn.ModuleDict):
                others = set(adapters) - set(layer.active_adapters)  # pyright: ignore
                idle |= {id(weight) for other in others for weight in adapters[other].parameters()}
    return idle


def _experts_per_token(config: Any, experts: list[Tensor]) -> int:
    """How many experts a token goes through. 0 without experts."""
    if not experts:
        return 0
    counts = {getattr(config, name, None) for name in EXPERT_COUNTS}
    top_k = getattr(config, "num_experts_per_tok", None)
    if not isinstance(top_k, int) or any(len(matrix) not in counts for matrix in experts):
        shapes = sorted({tuple(matrix.shape) for matrix in experts})
        raise UnknownCostError(
            f"expected stacks of experts and num_experts_per_tok, got weights of {shapes} and "
            f"num_experts_per_tok={top_k}"
        )
    return top_k


@torch.no_grad()
def _count_pass(policy: Policy) -> tuple[tuple[Attention, ...], int]:
    """The attention calls of a pass over PROBE_TOKENS tokens, and the FLOPs of its other products.

    Attention itself is left out: torch counts its kernels in different ways.
    """
    ids = torch.arange(PROBE_TOKENS, device=policy.device) % policy.model.config.vocab_size
    counter = FlopCounterMode(display=False)
    with policy.autocast(), _recorded_attention() as calls, counter:
        policy.run(lambda: policy.model.base_model(input_ids=ids[None], use_cache=False))
    return tuple(calls), counter.get_total_flops()


@contextlib.contextmanager
def _recorded_attention() -> Iterator[list[Attention]]:
    """Inside, attention computes nothing, and the list gets each of its calls."""
    calls: list[Attention] = []

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        batch, heads, tokens, key_dim = query.shape
        window = kwargs.get("sliding_window")
        calls.append(Attention(heads, key.shape[1], key_dim, value.shape[3], window))
        return value.new_zeros(batch, tokens, heads, value.shape[3]), None

    transformers.AttentionInterface.register(ATTENTION, record)
    try:
        yield calls
    finally:
        transformers.AttentionInterface.register(ATTENTION, packed_attention)
