"""Whether a model computes packed tokens as it computes sequences alone. Checked at load.

Numbers cannot show a part whose weights are zero or tiny: a new adapter, a branch that begins as 0,
a convolution that has just been initialised. So the structure is checked too, whatever the values:
a graph of gradients has a weight that is 0, and NaN passes through it. Nor do small logits show a
softcap or a clamp. So the head is also compared on hidden states that are made larger.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import sdpa_mask

from srt_fast.model.attention import ATTENTION
from srt_fast.model.lm_head import LMHeadParameters, head_logits
from srt_fast.types import Segments

# Largest difference of two logits, relative to the largest logit, that passes. Float32 models agree
# to about 1e-6 (tests/model/test_policy.py). Bfloat16 has 8 bits of precision and loses some of
# them in each layer.
PARITY_FLOAT32 = 1e-4
PARITY_BFLOAT16 = 3e-2
LARGEST_LOGITS = (64.0, 2048.0)  # of the hidden states that are made larger
FOLLOWING_TOKENS = 58  # a layer may carry a sequence this far into the next one
OWN_VALUE = "srt_own_value"


class PackedModel(Protocol):
    """What the check needs of a Policy."""

    model: PreTrainedModel
    device: torch.device

    @property
    def compute_dtype(self) -> torch.dtype: ...
    @property
    def head(self) -> LMHeadParameters: ...
    def hidden(self, input_ids: Tensor, position_ids: Tensor, segments: Segments) -> Tensor: ...
    def autocast(self) -> contextlib.AbstractContextManager: ...
    def gathered_weights(self) -> contextlib.AbstractContextManager[None]: ...


def check_packing(policy: PackedModel) -> None:
    """Raise ValueError for an architecture that does not pack."""
    name = f"model {type(policy.model).__name__}: this architecture is not supported: "
    if getattr(policy.model.config.get_text_config(), "attention_chunk_size", None):
        raise ValueError(f"{name}expected attention over the whole sequence, got chunked attention")
    obstacle = _obstacle(policy, shares_prompt=False)
    if obstacle:
        raise ValueError(f"{name}{obstacle}")
    _check_structure(policy, name)


def sharing_obstacle(policy: PackedModel) -> str | None:
    """Why completions cannot share their prompt in this model: expected and got. None: they can."""
    obstacle = _obstacle(policy, shares_prompt=True)
    if obstacle:
        return obstacle
    with _whole_in_eval_mode(policy):
        mixes_positions = _mixes(policy, slice(1, 2))
    if mixes_positions:
        return "expected that only attention mixes positions, got another layer that does"
    return None


def _obstacle(policy: PackedModel, *, shares_prompt: bool) -> str | None:
    """Raises ValueError for logits of nan."""
    try:
        difference = _logit_difference(policy, shares_prompt)
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        # A model that does not pack raises one of these for arguments that it does not take.
        return f"expected it to take packed sequences, got {type(error).__name__}: {error}"
    if math.isnan(difference):
        raise ValueError(
            f"model {type(policy.model).__name__}: expected finite weights, got logits of nan"
        )
    if difference <= _tolerance(policy):
        return None
    return (
        "expected packed hidden states times the LM head to give the model's own logits (relative "
        f"difference at most {_tolerance(policy):g}), got {difference:.3g}"
    )


@contextlib.contextmanager
def _whole_in_eval_mode(policy: PackedModel) -> Iterator[None]:
    """Inside, all weights are whole on every rank, and the model is in eval mode."""
    was_training = policy.model.training
    policy.model.eval()
    try:
        with policy.gathered_weights():
            yield
    finally:
        policy.model.train(was_training)


def _tolerance(policy: PackedModel) -> float:
    is_float32 = policy.compute_dtype == torch.float32
    return PARITY_FLOAT32 if is_float32 else PARITY_BFLOAT16


def _check_structure(policy: PackedModel, name: str) -> None:
    """Raise ValueError for what _logit_difference cannot see: parts whose weights or inputs are
    small.
    """
    with _whole_in_eval_mode(policy):
        beside_head = _trained_beside_head(policy)
        head_difference = _head_difference(policy)
        mixes_sequences = _mixes(policy, slice(3, 6))
    if beside_head:
        raise ValueError(
            f"{name}expected logits of the LM head on the last hidden states alone, got some that "
            f"also depend on {', '.join(beside_head[:3])}"
        )
    if not head_difference <= _tolerance(policy):
        raise ValueError(
            f"{name}expected a linear LM head with a bias, a scale and a softcap, got other logits "
            f"where they are large (relative difference {head_difference:.3g})"
        )
    if mixes_sequences:
        raise ValueError(
            f"{name}expected that only attention mixes positions, got another layer that carries "
            "one packed sequence into the next"
        )


def _trained_beside_head(policy: PackedModel) -> list[str]:
    """Names of parameters that make logits, and would get no gradient from the loss."""
    ids = torch.arange(3, device=policy.device)
    with torch.enable_grad():
        head = policy.head
        with policy.autocast():
            logits = policy.model(input_ids=ids[None], use_cache=False).logits
        hidden = torch.zeros(1, head.weight.shape[1], device=policy.device)
        return _names_beside(policy.model, logits, head_logits(hidden, head))


@torch.no_grad()
def _head_difference(policy: PackedModel) -> float:
    """Largest difference between the head and the model's own logits where logits are large.

    Relative to the largest logit. The hidden states of three tokens are multiplied by powers of 2.
    """
    hidden, logits = _own_logits(policy, 1.0)
    most = torch.finfo(hidden.dtype).max / 4
    limit = most / hidden.abs().max().clamp_min(1).item()
    size = logits.abs().max().clamp_min(1e-30).item()
    differences = []
    for largest in LARGEST_LOGITS:
        factor = 2.0 ** math.floor(math.log2(min(largest / size, limit)))
        hidden, logits = _own_logits(policy, factor)
        difference = (head_logits(hidden, policy.head) - logits).abs().max()
        differences.append(difference / logits.abs().max().clamp_min(1))
    return torch.stack(differences).max().item()


def _own_logits(policy: PackedModel, factor: float) -> tuple[Tensor, Tensor]:
    """Hidden states [3, H] of three tokens, times `factor`, and the model's logits [3, V].

    The hidden states are scaled where they leave the body, or where they enter the head in a model
    that does not call its body as a whole (OPT).
    """
    seen = []

    def scale_output(body: nn.Module, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state * factor
        seen.append(output.last_hidden_state[0])
        return output

    def scale_input(head: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        if seen or not arguments:
            return None
        seen.append(arguments[0][0] * factor)
        return (seen[0][None],)

    ids = torch.arange(3, device=policy.device)
    head: Any = policy.model.get_output_embeddings()
    handles = [
        policy.model.base_model.register_forward_hook(scale_output),
        head.register_forward_pre_hook(scale_input),
    ]
    try:
        with policy.autocast():
            logits = policy.model(input_ids=ids[None], use_cache=False).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError(
            f"model {type(policy.model).__name__}: this architecture is not supported: expected a "
            "call of its body or its LM head, got none"
        )
    return seen[0].to(policy.compute_dtype), logits


@torch.no_grad()
def _mixes(policy: PackedModel, rows: slice) -> bool:
    """Whether a layer other than attention carries these rows of packed sequences into others.

    The rows 3 to 5 are the second sequence. The row 1 is inside of the first one: a layer that
    mixes positions of one sequence alone cannot know which tokens a shared prompt precedes.
    """
    if policy.model.config._attn_implementation != ATTENTION:
        return False  # its rows are padded
    device = policy.device
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    lengths = [3, 3, min(FOLLOWING_TOKENS, context or FOLLOWING_TOKENS)]
    ids = torch.arange(sum(lengths), device=device) % policy.model.config.vocab_size
    cu_seqlens = torch.tensor([0, 3, 6, sum(lengths)], dtype=torch.int32, device=device)
    segments = Segments.of_sequences(lengths, cu_seqlens)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    with _without_attention(policy.model), _nan_embeddings(policy.model, rows):
        is_bad = policy.hidden(ids, positions, segments).isnan().any(1)
    return bool(is_bad[: rows.start].any() or is_bad[rows.stop :].any())


@torch.no_grad()
def _logit_difference(policy: PackedModel, shares_prompt: bool) -> float:
    """Largest difference between the head on packed hidden states and the model's own logits.

    Relative to the largest logit, of a prompt of three tokens with completions of two and of four.
    """
    device = policy.device
    ids = torch.arange(9, device=device) % policy.model.config.vocab_size
    prompt, first, second = ids.split([3, 2, 4])
    sequences = [torch.cat([prompt, first]), torch.cat([prompt, second])]
    with _whole_in_eval_mode(policy):
        with policy.autocast():
            outputs = [policy.model(input_ids=ids[None], use_cache=False) for ids in sequences]
        logits = [output.logits[0].float() for output in outputs]
        if shares_prompt:
            logits[1] = logits[1][3:]
            positions = [*range(5), *range(3, 7)]
            segments = _shared_segments(device)
        else:
            ids = torch.cat(sequences)
            positions = [*range(5), *range(7)]
            cu_seqlens = torch.tensor([0, 5, 12], dtype=torch.int32, device=device)
            segments = Segments.of_sequences([5, 7], cu_seqlens)
        hidden = policy.hidden(ids, torch.tensor(positions, device=device), segments)
        packed_logits = head_logits(hidden, policy.head)
    model_logits = torch.cat(logits)
    difference = (packed_logits - model_logits).abs().max()
    return (difference / model_logits.abs().max().clamp_min(1)).item()


def _shared_segments(device: torch.device) -> Segments:
    """A prompt of three tokens with completions of two and of four."""
    keys = [*range(3), *range(5), *range(3), *range(5, 9)]
    return Segments(
        query_lengths=[3, 2, 4],
        key_lengths=[3, 5, 7],
        cu_queries=torch.tensor([0, 3, 5, 9], dtype=torch.int32, device=device),
        cu_keys=torch.tensor([0, 3, 8, 15], dtype=torch.int32, device=device),
        key_index=torch.tensor(keys, device=device),
    )


def _own_value(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """Attention in which a token attends to itself alone, in transformers' form."""
    return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2), None


transformers.AttentionInterface.register(OWN_VALUE, _own_value)
transformers.AttentionMaskInterface.register(OWN_VALUE, sdpa_mask)


@contextlib.contextmanager
def _without_attention(model: Any) -> Iterator[None]:
    """Inside, attention carries nothing from one position to another."""
    attention = model.config._attn_implementation
    model.set_attn_implementation(OWN_VALUE)
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


@contextlib.contextmanager
def _nan_embeddings(model: Any, rows: slice) -> Iterator[None]:
    """Inside, the embeddings [1, T, H] of the tokens `rows` are NaN."""

    def poison(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        is_poisoned = torch.zeros(output.shape[-2], 1, dtype=torch.bool, device=output.device)
        is_poisoned[rows] = True
        return output.masked_fill(is_poisoned, float("nan"))

    handle = model.get_input_embeddings().register_forward_hook(poison)
    try:
        yield
    finally:
        handle.remove()


def _names_beside(model: nn.Module, logits: Tensor, head_logits: Tensor) -> list[str]:
    """Names of trainable parameters that `logits` depend on and `head_logits` do not.

    Left out are those of model.base_model, which makes the hidden states.
    """
    body: Any = model.base_model
    known = {id(parameter) for parameter in body.parameters()} | _leaves(head_logits)
    reached = _leaves(logits)
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in reached and id(parameter) not in known
    ]


def _leaves(tensor: Tensor) -> set[int]:
    """Ids of the tensors that get a gradient from this one's."""
    leaves = set()
    nodes: list[Any] = [tensor.grad_fn]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        nodes += [function for function, _ in node.next_functions]
    return leaves
