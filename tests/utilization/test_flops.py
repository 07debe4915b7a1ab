"""The formulas against torch's FlopCounterMode, and against sums over single queries."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from srt_fast.config import LoRAConfig, ModelConfig
from srt_fast.model.lora import TEACHER, TRAINED, add_adapters
from srt_fast.model.lora_policy import LoRAPolicy
from srt_fast.model.policy import Policy
from srt_fast.quickstart import build_tokenizer
from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.hf import HFSampler
from srt_fast.utilization.flops import Attention, ModelCost, SegmentLengths, visible_keys
from srt_fast.utilization.layout import sampling_passes
from srt_fast.utilization.model_cost import UnknownCostError, largest_matrix, model_cost
from support.models import SMALL, make_model, make_policy

IDS = [3, 1, 4, 1, 5, 9, 2]
EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
LAYERS = SMALL | {"num_hidden_layers": 3}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SMALL),
    "tied head": lambda: LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(
        **LAYERS, use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**SMALL, head_dim=16),
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=3),
    "gemma3": lambda: Gemma3TextConfig(
        **LAYERS,
        head_dim=16,
        sliding_window=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mixtral": lambda: MixtralConfig(**SMALL, **EXPERTS, num_local_experts=4),
    "qwen3 moe": lambda: Qwen3MoeConfig(
        **SMALL, **EXPERTS, head_dim=16, num_experts=4, moe_intermediate_size=24
    ),
}
WINDOWS = {
    "qwen2": [None, 3, 3],
    "mistral": [3, 3],
    "gemma3": [3, None, 3],
}


def counted(function) -> int:
    """FLOPs of a call, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def own_logits(policy: Policy, targets: int) -> torch.Tensor:
    """The model's own logits of the last tokens of IDS. Attention is products that torch counts."""
    model = policy.model
    model.set_attn_implementation("eager")
    ids = torch.tensor([IDS])
    return model(input_ids=ids, use_cache=False, logits_to_keep=targets).logits


def all_pairs(cost: ModelCost, length: int, products: int) -> int:
    """FLOPs that torch counts beside the formula's: pairs of a query and a key that it may not see.

    products: of attention. 2 forward, 6 with the backward pass.
    """
    return sum(
        products
        * 2
        * layer.heads
        * layer.key_dim
        * (length**2 - visible_keys(length, length, layer.window))
        for layer in cost.attention
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_models_products_are_counted_exactly(name):
    """Forward, and forward with backward, of a sequence of 7 tokens with 4 targets.

    One eager pass also multiplies each query with the keys after it.
    """
    policy = make_policy(CONFIGS[name]())
    cost = model_cost(policy)
    assert [layer.window for layer in cost.attention] == WINDOWS.get(name, [None] * 2)
    segments = SegmentLengths([7], [7], 4)
    with torch.no_grad():
        forward = counted(lambda: own_logits(policy, 4))
    assert forward == cost.forward(segments) + all_pairs(cost, 7, 2)
    both = counted(lambda: own_logits(policy, 4).sum().backward())
    assert both == cost.training(segments) + all_pairs(cost, 7, 6)


def test_checkpointing_and_frozen_weights():
    policy = make_policy(LlamaConfig(**SMALL), gradient_checkpointing=True)
    segments = SegmentLengths([7], [7], 4)
    cost = model_cost(policy)
    both = counted(lambda: own_logits(policy, 4).sum().backward())
    # The body's forward a second time is no part of the model's FLOPs, but for down_proj, whose
    # result the backward pass does not need: torch does not compute that product again.
    again = cost.forward(SegmentLengths([7], [7], 0)) - 2 * 7 * 32 * 48 * 2
    assert both == cost.training(segments) + all_pairs(cost, 7, 8) + again

    frozen = make_policy(LlamaConfig(**SMALL))
    frozen.model.base_model.layers.requires_grad_(False)
    cost = model_cost(frozen)
    both = counted(lambda: own_logits(frozen, 4).sum().backward())
    assert both == cost.training(segments) + all_pairs(cost, 7, 6)


def test_an_adapter_that_is_not_active_computes_nothing():
    """The teacher of `ema` is a second adapter of the model."""
    weights = []
    for names in ([TRAINED], [TRAINED, TEACHER]):
        model = make_model(LlamaConfig(**SMALL))
        lora = LoRAConfig(r=4)
        add_adapters(model, lora, "base", names)
        policy = LoRAPolicy(model, build_tokenizer(), ModelConfig(lora=lora))
        weights.append(model_cost(policy).weights)
    assert weights[0] == weights[1]


def test_decoding_is_counted_exactly():
    """Single queries see all keys: nothing is left out. The sampler's own passes."""
    policy = make_policy(LlamaConfig(**SMALL))
    cost = model_cost(policy)
    policy.model.set_attn_implementation("eager")
    sampler = HFSampler(policy, max_sequences=8)
    sampled = []
    params = SamplingParams(n=3, max_tokens=5)
    flops = counted(lambda: sampled.append(sampler.sample([[5], [7]], params, seeds=[1, 2])))
    passes = sampling_passes(sampled[0])
    assert flops == cost.forward(passes.prefill) + cost.forward(passes.decoding)


@given(queries=st.integers(0, 9), before=st.integers(0, 9), window=st.none() | st.integers(1, 12))
def test_visible_keys_is_a_sum_over_queries(queries, before, window):
    keys = before + queries
    each = [min(place + 1, window or keys) for place in range(before, keys)]
    assert visible_keys(queries, keys, window) == sum(each)


def test_what_decoding_reads():
    """Two steps read 100 + 10 weights each. Queries see 3 + 4 keys of 2 heads of 5 + 6 elements."""
    layer = Attention(heads=4, kv_heads=2, key_dim=5, value_dim=6, window=None)
    cost = ModelCost(
        weights=100,
        trained_weights=100,
        head_weights=10,
        trained_head_weights=10,
        attention=(layer,),
    )
    assert cost.read_elements(SegmentLengths([2], [4], 2), 2) == 2 * 110 + 7 * 2 * (5 + 6)


def test_a_model_that_is_not_understood_gets_no_figure():
    """A linear layer that no token goes through, and weights of a convolution."""
    policy = make_policy(LlamaConfig(**SMALL))
    assert largest_matrix(policy) == (48, 32)
    policy.model.base_model.unused = torch.nn.Linear(4, 4)
    with pytest.raises(UnknownCostError, match="FLOPs in the linear layers of 8 tokens"):
        model_cost(policy)
    policy.model.base_model.unused = torch.nn.Conv1d(4, 4, 3)
    with pytest.raises(UnknownCostError, match="expected stacks of experts"):
        model_cost(policy)
    assert transformers.AttentionInterface()["srt_varlen"].__name__ == "packed_attention"
