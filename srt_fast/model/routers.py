"""The auxiliary loss of a mixture of experts: routers that send tokens to all experts alike.

The routers' logits are those that transformers' models return as `router_logits`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from srt_fast.model.policy import Policy
from srt_fast.types import PackedSequences, Segments
from srt_kernels.core.segments import segment_ids


@contextlib.contextmanager
def record_router_logits(model: nn.Module, *, enabled: bool = True) -> Iterator[list[Tensor]]:
    """Inside, a forward pass of the model puts its routers' logits into the list: [T, E] a layer.

    model: of transformers. Of padded rows, as PaddedPolicy runs them, the T real tokens count.
    """
    router_logits: list[Tensor] = []
    if not enabled:
        yield router_logits
        return

    def ask(module: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
        return arguments, options | {"output_router_logits": True}

    def keep(module: nn.Module, arguments: tuple, options: dict, output: Any) -> None:
        mask = options["attention_mask"]
        for logits in getattr(output, "router_logits", None) or ():
            rows = logits.flatten(0, -2)
            router_logits.append(rows[mask.flatten().bool()] if mask.dim() == 2 else rows)

    body: Any = model.base_model
    handles = [
        body.register_forward_pre_hook(ask, with_kwargs=True),
        body.register_forward_hook(keep, with_kwargs=True),
    ]
    try:
        yield router_logits
    finally:
        for handle in handles:
            handle.remove()


def load_balancing_loss(
    router_logits: Sequence[Tensor], top_k: int, copies: Tensor | None = None
) -> Tensor:
    """The scalar loss E * sum_e f_e P_e, in fp32 (fp64 for fp64 logits). 0 without tokens.

    f_e is how many of a token's top_k assignments go to expert e, and has no gradient. P_e is the
    expert's probability. Both are means over the tokens of all layers together. An even load has a
    loss of top_k.

    Source: equations 4 to 6 of arXiv 2101.03961, in the form of transformers'
    load_balancing_loss_func.

    Args:
        router_logits: [T, E] of each layer.
        top_k: experts that a token goes to.
        copies: [T] int64, how often each token counts. None: once.
    """
    tokens, experts = router_logits[0].shape
    device = router_logits[0].device
    dtype = torch.promote_types(router_logits[0].dtype, torch.float32)
    if copies is None:
        copies = torch.ones(tokens, dtype=torch.int64, device=device)
    assigned = torch.zeros(experts, dtype=torch.int64, device=device)
    probability = torch.zeros(experts, dtype=dtype, device=device)
    for logits in router_logits:
        probabilities = logits.softmax(-1, dtype=dtype)
        chosen = probabilities.detach().topk(top_k, dim=-1).indices
        assigned = assigned.index_add(0, chosen.flatten(), copies.repeat_interleave(top_k))
        probability = probability + (probabilities * copies[:, None]).sum(0)
    count = (len(router_logits) * copies.sum()).clamp(min=1)
    return experts * (assigned / count * (probability / count)).sum()


def token_copies(sequences: PackedSequences) -> Tensor:
    """[T] int64: how often each input token comes if each rollout has its prompt to itself.

    A completion's token comes once, a prompt's once for each completion behind it. In the example
    of PackedSequences: [3 3 3 | 1 1 | 1]. The last token of a segment says it: a prompt's predicts
    the first token of each completion, a completion's last input its last token.
    """
    predictions = sequences.input_ids.new_zeros(len(sequences.input_ids))
    ones = torch.ones_like(sequences.row_index)
    predictions = predictions.index_add(0, sequences.row_index, ones)
    cu_queries = sequences.segments.cu_queries
    segment = segment_ids(cu_queries, len(predictions))
    return predictions[cu_queries[1:].long() - 1][segment]


def experts_per_token(model: Any) -> int:
    """The experts that a token goes to in each layer."""
    return model.config.get_text_config().num_experts_per_tok


@torch.no_grad()
def check_routers(policy: Policy, setting: str) -> None:
    """Raise ValueError that names the setting if the model's routers cannot have the loss.

    Collective.
    """
    device = policy.device
    ids = torch.arange(3, device=device) % policy.model.config.vocab_size
    cu_seqlens = torch.tensor([0, 3], dtype=torch.int32, device=device)
    segments = Segments.of_sequences([3], cu_seqlens)
    with record_router_logits(policy.model) as router_logits:
        policy.run(lambda: policy.hidden(ids, torch.arange(3, device=device), segments))
    name = type(policy.model).__name__
    if not router_logits:
        raise ValueError(
            f"{setting}: expected 0, or a mixture of experts that returns its routers' logits, "
            f"got {name}"
        )
    widths = sorted({logits.shape[-1] for logits in router_logits})
    lengths = sorted({len(logits) for logits in router_logits})
    top_k = getattr(policy.model.config.get_text_config(), "num_experts_per_tok", None)
    if len(widths) > 1 or lengths != [3] or not isinstance(top_k, int) or top_k > widths[0]:
        raise ValueError(
            f"{setting}: expected 0, or a model that gives each token to num_experts_per_tok of "
            f"the same number of experts in all layers, got {name} with {top_k} of {widths}"
        )
