"""Adapters on weights in 4 bits: passes, merged weights, errors."""

import importlib.util

import pytest
import torch

from srt_fast.config import override
from srt_fast.model.loading import load_adapted, load_policy
from srt_fast.model.quantized import check_quantization, is_quantized, whole_weight
from srt_fast.types import Segments
from srt_fast.utilization.model_cost import UnknownCostError, model_cost
from support.models import rounding_error

# The terms of the sums one behind the other, as in tests/model/test_lora.py.
TERMS = 2 * (4 * 32 + 12 + 32 + 128 + 2 * 32 + 2 * 4)
QLORA = {"model.lora": {"r": 4, "target": ("q_proj", "up_proj"), "quantize": "nf4"}}


def hidden_states(policy) -> torch.Tensor:
    """[12, 32] of one sequence of 12 tokens."""
    ids = torch.arange(12) * 7 % 200
    cu_seqlens = torch.tensor([0, 12], dtype=torch.int32)
    segments = Segments.of_sequences([12], cu_seqlens)
    return policy.run(lambda: policy.hidden(ids, torch.arange(12), segments))


@pytest.fixture
def policy(tiny_config, tiny_model):
    """With an adapter that has trained: B is not 0."""
    config = override(tiny_config, QLORA)
    policy = load_adapted(tiny_model, config.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in policy.own_weights().items():
            if "lora_B" in name:
                tensor.normal_(std=0.1)
    return policy


def test_the_body_is_quantized_and_the_rest_is_not(policy, tiny_model, tiny_config):
    """Blocks of 64 weights with one of 16 values each. NF4's largest gap is 0.32 of a block's
    largest weight, so a weight is off by half of that at most, and by the rounding of the scale to
    8 bits.
    """
    layers = {n: m for n, m in policy.model.named_modules() if is_quantized(m)}
    plain = load_policy(tiny_model, tiny_config.model).model
    linear = [
        name
        for name, module in plain.named_modules()
        if type(module) is torch.nn.Linear and module is not plain.get_output_embeddings()
    ]
    assert {name.removesuffix(".base_layer") for name in layers} == set(linear)
    head = policy.model.get_output_embeddings().weight
    assert head.equal(plain.get_output_embeddings().weight)
    assert not any(p.requires_grad for n, p in policy.model.named_parameters() if "lora_" not in n)
    name = "model.layers.0.mlp.down_proj"
    whole, before = whole_weight(layers[name]), plain.get_submodule(name).weight
    assert whole.shape == before.shape and not whole.equal(before)
    largest = before.abs().max()
    assert (whole - before).abs().max() < (0.16 + 0.02) * largest


def test_merged_weights_are_those_that_the_passes_multiply_by(policy, tmp_path, tiny_config):
    """With the adapter, and the starting model without it."""
    for name, view in (("trained", policy), ("start", policy.view(None))):
        view.save(tmp_path / name)
        merged = load_policy(str(tmp_path / name), tiny_config.model)
        expected, actual = hidden_states(merged), hidden_states(view)
        bound = rounding_error(TERMS, expected.abs().max().item(), 2**-24)
        torch.testing.assert_close(actual, expected, rtol=0, atol=bound)
    starts = load_policy(str(tmp_path / "start"), tiny_config.model)
    assert (hidden_states(starts) - hidden_states(policy)).abs().max() > 1e-3


def test_gradients_reach_the_adapters_only(policy, tmp_path, tiny_config):
    """Those of the input pass through the 4-bit products: they are those of the merged model."""
    grads = []
    policy.save(tmp_path / "merged")
    for each in (policy, load_policy(str(tmp_path / "merged"), tiny_config.model)):
        embedding = each.model.get_input_embeddings().weight
        embedding.requires_grad_(True)
        slope = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
        (hidden_states(each) * slope).sum().backward()
        grads.append(embedding.grad)
    assert (grads[0] - grads[1]).norm() < rounding_error(3 * TERMS, 1.0, 2**-24) * grads[1].norm()
    trained = {name for name, p in policy.model.named_parameters() if p.grad is not None}
    assert all("lora_" in name or "embed" in name for name in trained)
    assert any("lora_A" in name for name in trained)


def test_costs_are_not_counted(policy):
    with pytest.raises(UnknownCostError, match=r"expected weights of floats, got weight .*uint8"):
        model_cost(policy)


def test_errors(tiny_config, tiny_model, monkeypatch):
    with pytest.raises(ValueError, match=r"model.lora.r: expected at least 1 .*'nf4', got 0"):
        override(tiny_config, {"model.lora.quantize": "nf4"})
    with pytest.raises(ValueError, match=r"quantize: expected a device of cuda or cpu, got meta"):
        check_quantization(torch.device("meta"))
    config = override(tiny_config, QLORA | {"model.compile": True})
    with pytest.raises(ValueError, match=r"quantize: expected 'none' with model.compile"):
        load_adapted(tiny_model, config.model)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: find_spec(name) if name != "bitsandbytes" else None,
    )
    with pytest.raises(ValueError, match=r"expected the package bitsandbytes, .*srt-fast\[qlora\]"):
        load_adapted(tiny_model, override(tiny_config, QLORA).model)
