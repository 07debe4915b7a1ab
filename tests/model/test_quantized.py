"""Adapters on weights in 4 bits: passes, merged weights, errors."""

import importlib.util

import pytest
import torch
from bitsandbytes.functional import get_4bit_type
from transformers import Qwen2Config

from srt_fast.config import override
from srt_fast.model.loading import load_adapted, load_policy
from srt_fast.model.lora import adapted_layers
from srt_fast.model.quantized import check_quantization, is_quantized, whole_weight
from srt_fast.quickstart import build_tokenizer
from srt_fast.types import Segments
from srt_fast.utilization.model_cost import UnknownCostError, model_cost
from support.models import SMALL, make_model, rounding_error

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
    """Blocks of 64 weights, each of which is one of NF4's 16 values times the block's scale."""
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
    assert whole.shape == before.shape
    blocks, weights = whole.view(-1, 64), before.view(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    values = get_4bit_type("nf4", device="cpu")
    nearest = (blocks / scales)[..., None].sub(values).abs().amin(-1)
    assert nearest.max() < 2**-22
    # A weight takes the nearest value: half of the largest gap, 0.304, of the block's largest
    # weight. The scales have 8 bits, with an error of a hundredth at most.
    largest = weights.abs().amax(1, keepdim=True)
    assert ((blocks - weights).abs() < (0.152 + 0.01) * largest).all()


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


def test_gradients_are_those_of_the_merged_model(policy, tmp_path, tiny_config):
    """Of the input, through the 4-bit products; and with dW that of a merged weight, s dW A^T of B
    and s B^T dW of A.
    """
    grads = []
    policy.save(tmp_path / "merged")
    merged = load_policy(str(tmp_path / "merged"), tiny_config.model)
    for each in (policy, merged):
        embedding = each.model.get_input_embeddings().weight
        embedding.requires_grad_(True)
        slope = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
        (hidden_states(each) * slope).sum().backward()
        grads.append(embedding.grad)
    layer = adapted_layers(policy.model)["model.layers.0.self_attn.q_proj"]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    slope = layer.scaling["default"] * merged.model.model.layers[0].self_attn.q_proj.weight.grad
    pairs = [grads, (b.grad, slope @ a.detach().T), (a.grad, b.detach().T @ slope)]
    for actual, expected in pairs:
        error = (actual - expected).norm() / expected.norm()
        assert error < rounding_error(3 * TERMS, 1.0, 2**-24)


@pytest.mark.parametrize("changes", [{"autocast": "bfloat16"}, {"dtype": "bfloat16"}])
def test_a_pass_in_bfloat16(tiny_config, changes, tmp_path):
    """As of a plain layer: products in bfloat16. The bias (Qwen2 has some) keeps its type."""
    sizes = {name: SMALL[name] for name in SMALL if name != "tie_word_embeddings"}
    model = make_model(Qwen2Config(**sizes))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias.normal_()
    model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    lora = {"r": 4, "target": ("all-linear",), "quantize": "nf4"}
    config = override(tiny_config, {"model": {"lora": lora} | changes, "model.path": str(tmp_path)})
    policy = load_adapted(str(tmp_path), config.model)
    layer = adapted_layers(policy.model)["model.layers.0.self_attn.q_proj"].get_base_layer()
    kind = policy.model.dtype
    with policy.autocast():
        assert layer(torch.randn(3, 32, dtype=kind)).dtype == torch.bfloat16
    bias = model.model.layers[0].self_attn.q_proj.bias
    assert layer.bias.dtype == kind and layer.bias.equal(bias.to(kind))
    merged = dict(policy.named_weights())
    assert merged["model.layers.0.self_attn.q_proj.bias"].equal(bias.to(kind))
    assert {tensor.dtype for tensor in merged.values()} == {kind}


def test_costs_are_not_counted(policy):
    with pytest.raises(UnknownCostError, match=r"expected weights of floats, got weight .*uint8"):
        model_cost(policy)


def test_errors(tiny_config, tiny_model, monkeypatch):
    without_adapters = override(tiny_config, {"model.lora.quantize": "nf4"})
    with pytest.raises(ValueError, match=r"model.lora.r: expected at least 1 .*'nf4', got 0"):
        load_policy(tiny_model, without_adapters.model)
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
