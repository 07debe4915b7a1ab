"""Compiled blocks against uncompiled ones: log-probs, gradients and completions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config

from srt_fast.config import ModelConfig
from srt_fast.distributed.sharding import model_blocks
from srt_fast.model import attention
from srt_fast.model.loading import load_policy
from srt_fast.model.logprobs import head_inputs
from srt_fast.model.policy import Policy
from srt_fast.packing.micro_batches import pack
from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.hf import HFSampler
from srt_fast.types import Rollouts
from srt_kernels import linear_logprob
from support.models import rounding_error
from support.rollouts import random_rollouts

# The terms of the sums one behind the other in each of two layers and the head: q, k, v and their
# output, attention over 8 tokens, the MLP's products (32 and 48), and the head.
TERMS = 2 * (4 * 32 + 8 + 32 + 48) + 32
BATCHES = [("1+2=", "30+4="), ("7+7=",), ("12+3=", "4+4=", "50+50=")]  # prompts of each batch


def logprobs_and_gradients(policy: Policy, rollouts: Rollouts) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs of all tokens, and the gradients of their mean."""
    policy.model.zero_grad()
    count = len(rollouts.truncated)
    [batch] = pack(rollouts, torch.zeros(count), range(count), 10**9)
    tensors, options = head_inputs(policy, batch, 1.0)
    logprobs, _ = linear_logprob(*tensors, **options)
    logprobs.mean().backward()
    gradients = {name: weight.grad for name, weight in policy.model.named_parameters()}
    return logprobs.detach(), {name: grad for name, grad in gradients.items() if grad is not None}


def test_compiled_blocks_compute_the_same(tiny_model, tiny_policy):
    """And other lengths need no other graphs. Sampling compiles nothing."""
    compiled = load_policy(tiny_model, ModelConfig(compile=True))
    counters.clear()
    graphs = []
    for prompts in BATCHES:
        rollouts = random_rollouts(tiny_policy, 3, prompts)
        expected_logprobs, expected = logprobs_and_gradients(tiny_policy, rollouts)
        logprobs, gradients = logprobs_and_gradients(compiled, rollouts)
        graphs.append(counters["stats"]["unique_graphs"])
        size = expected_logprobs.abs().max().item()
        assert (logprobs - expected_logprobs).abs().max() <= rounding_error(TERMS, size, 2**-24)
        assert gradients.keys() == expected.keys()
        # Backward sums over the vocabulary and over all tokens too.
        terms = 2 * TERMS + 265 + len(rollouts.tokens)
        for name, gradient in gradients.items():
            tolerance = rounding_error(terms, expected[name].abs().max().item(), 2**-24)
            assert (gradient - expected[name]).abs().max() <= tolerance, name

    tokens = [
        HFSampler(policy, 4)
        .sample(
            [[5, 6, 7], [8, 9, 10, 11]],
            SamplingParams(n=3, temperature=1.0, max_tokens=12),
            seeds=[0, 1],
        )
        .tokens
        for policy in (tiny_policy, compiled)
    ]
    assert tokens[0].equal(tokens[1])
    graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}


def test_a_missing_compiler_is_one_clear_error(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled lies there
    torch.compiler.reset()
    message = "^model.compile: expected torch.compile to work on 'cpu', got: .*no-such-compiler.*$"
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ValueError, match=message):
        load_policy(tiny_model, ModelConfig(compile=True))


@torch.library.custom_op("srt_tests::varlen", mutates_args=())
def varlen(query: Tensor, max_queries: int, max_keys: int) -> Tensor:
    """Stands for the attention kernels of a GPU, which take the longest lengths as numbers."""
    return query.clone()


@varlen.register_fake
def _(query: Tensor, max_queries: int, max_keys: int) -> Tensor:
    return torch.empty_like(query)


@pytest.mark.parametrize("shares_prompts", [True, False])
def test_the_number_of_segments_compiles_nothing_anew(tiny_policy, monkeypatch, shares_prompts):
    monkeypatch.setattr(attention, "attention_path", lambda device, dtype: attention.TORCH_VARLEN)
    monkeypatch.setattr(
        attention,
        "_torch_varlen",
        lambda query, key, value, segments, *_: varlen(
            query.contiguous(), segments.max_queries, segments.max_keys
        ),
    )
    torch._dynamo.reset()
    counters.clear()
    policy = copy.copy(tiny_policy)
    policy.model = copy.deepcopy(tiny_policy.model)
    for block in model_blocks(policy.model):
        block.forward = torch.compile(block.forward, dynamic=True, backend="eager")
    graphs = []
    for groups in (2, 3, 4, 5):
        rollouts = random_rollouts(tiny_policy, 3, [f"{group}+{group}=" for group in range(groups)])
        count = len(rollouts.truncated)
        [batch] = pack(
            rollouts, torch.zeros(count), range(count), 10**9, share_prompts=shares_prompts
        )
        policy.hidden(batch.input_ids, batch.position_ids, batch.segments)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[-1], graphs
