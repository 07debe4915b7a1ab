"""Packed forward passes against the model's own, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Lfm2Config, LlamaConfig, OPTConfig, Phi3Config

from srt_fast.config import ModelConfig, SamplingConfig
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.quickstart import build_tokenizer
from srt_fast.types import Segments
from support.models import ARCHITECTURES, SMALL, make_model, make_policy, rounding_error

# Like lengths share a call of the attention. One sequence has a single token.
SEQUENCES = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16, 17], [3, 4, 5], [20, 21]]
# The terms of the sums one behind the other, in each of two layers and the head: q, k, v and their
# output (4 * 32), attention (9), the MLP's products (32 and at most 128), the head (32).
TERMS = 2 * (4 * 32 + 9 + 32 + 128) + 32


def packed_logits(policy: Policy, sequences: list[list[int]]) -> Tensor:
    """[T, V] from packed hidden states, in the model's dtype."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    cu_input = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    position_ids = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    segments = Segments.of_sequences(lengths.tolist(), cu_input)
    hidden = policy.hidden(torch.tensor(sum(sequences, [])), position_ids, segments)
    head = policy.head
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    return logits / head.temperature_factor


def model_logits(policy: Policy, sequences: list[list[int]]) -> Tensor:
    """[T, V] of the model itself, one sequence at a time."""
    outputs = [policy.model(input_ids=torch.tensor([ids]), use_cache=False) for ids in sequences]
    return torch.cat([output.logits[0] for output in outputs])


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_packed_and_one_at_a_time_agree(config):
    policy = make_policy(config)
    policy.model.double()
    embedding = policy.model.get_input_embeddings()

    packed = packed_logits(policy, SEQUENCES)
    alone = model_logits(policy, SEQUENCES)
    tolerance = rounding_error(TERMS, alone.abs().max().item(), 2**-53)
    assert (packed - alone).abs().max() <= tolerance

    packed.sum().backward()
    packed_grad = embedding.weight.grad.clone()
    policy.model.zero_grad()
    alone.sum().backward()
    # Backward sums over the vocabulary and over all tokens too.
    terms = 2 * TERMS + 265 + sum(len(ids) for ids in SEQUENCES)
    size = embedding.weight.grad.abs().max().item()
    assert (packed_grad - embedding.weight.grad).abs().max() <= rounding_error(terms, size, 2**-53)


def test_gradient_checkpointing_gives_the_same_gradient():
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(
            ARCHITECTURES["query norms, tied head"], gradient_checkpointing=checkpointing
        )
        packed_logits(policy, [[5, 6, 7], [8, 9]]).square().sum().backward()
        gradients.append(policy.model.get_input_embeddings().weight.grad)
    plain, recomputed = gradients
    tolerance = rounding_error(2 * TERMS + 265, plain.abs().max().item(), 2**-24)
    assert (plain - recomputed).abs().max() <= tolerance


def test_attention_softcap_is_refused():
    with pytest.raises(ValueError, match="softcap"):
        make_policy(Gemma2Config(**SMALL, head_dim=8))


class TwoBranches(nn.Module):
    """An LM head with a second branch that begins as 0."""

    bias = None

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = head.weight
        self.branch = nn.Linear(head.in_features, head.out_features, bias=False)
        nn.init.zeros_(self.branch.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight) + self.branch(hidden)


def test_a_branch_beside_the_head_is_refused_while_it_is_0():
    model = make_model(LlamaConfig(**SMALL))
    model.lm_head = TwoBranches(model.lm_head)
    with pytest.raises(ValueError, match="logits of the LM head .* lm_head.branch.weight"):
        Policy(model, build_tokenizer(), ModelConfig())


class Bounded(nn.Linear):
    """An LM head that no config names. It has no weights of its own."""

    def __init__(self, head: nn.Linear, bound: Callable[[Tensor], Tensor]) -> None:
        super().__init__(head.in_features, head.out_features, bias=False)
        self.weight = head.weight
        self.bound = bound

    def forward(self, hidden: Tensor) -> Tensor:
        return self.bound(super().forward(hidden))


@pytest.mark.parametrize("bound", [lambda x: 30 * torch.tanh(x / 30), nn.Hardtanh(-100, 100)])
def test_a_bound_of_logits_is_refused_while_they_are_small(bound):
    model = make_model(LlamaConfig(**SMALL))
    model.lm_head = Bounded(model.lm_head, bound)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.01)
    with pytest.raises(ValueError, match="expected a linear LM head .* got other logits"):
        Policy(model, build_tokenizer(), ModelConfig())


def test_a_model_that_does_not_call_its_body_as_a_whole():
    """OPT calls its decoder."""
    config = OPTConfig(
        vocab_size=265,
        hidden_size=32,
        num_hidden_layers=2,
        ffn_dim=48,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    )
    policy = make_policy(config, share_prompts=True)
    assert policy.shares_prompts
    difference = (packed_logits(policy, SEQUENCES) - model_logits(policy, SEQUENCES)).abs().max()
    size = model_logits(policy, SEQUENCES).abs().max().item()
    assert difference <= rounding_error(TERMS, size, 2**-24)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_convolution_is_refused_while_it_is_small_or_0(scale):
    """Numbers do not show it: fresh it moves logits by 7e-6, with weights of 0 by nothing."""
    model = make_model(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".conv." in name:
                weight.mul_(scale)
    with pytest.raises(ValueError, match="expected that only attention mixes positions"):
        Policy(model, build_tokenizer(), ModelConfig())


def test_tied_weights_come_once():
    policy = make_policy(ARCHITECTURES["query norms, tied head"])
    names = [name for name, _ in policy.weights()]
    assert "lm_head.weight" not in names
    assert len(names) == len(set(names)) == len(list(policy.model.parameters()))


def test_longest_prompt(tiny_policy):
    """The tiny model has a context of 64 tokens."""
    roomy = SamplingConfig(max_prompt_tokens=1000, max_new_tokens=24)
    assert longest_prompt(tiny_policy, roomy) == 40
    short = SamplingConfig(max_prompt_tokens=10, max_new_tokens=24)
    assert longest_prompt(tiny_policy, short) == 10
    expected = "max_new_tokens: expected less than the model's context of 64 tokens, got 64"
    with pytest.raises(ValueError, match=expected):
        longest_prompt(tiny_policy, SamplingConfig(max_new_tokens=64))
    # Behind the original length the angles of all sequences of a row would change.
    factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    config = Phi3Config(**SMALL, rope_parameters=rope, original_max_position_embeddings=40)
    policy = SimpleNamespace(model=SimpleNamespace(config=config))
    assert longest_prompt(policy, roomy) == 16
