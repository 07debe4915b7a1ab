"""Which kernels a model gets. Liger's kernels themselves need a GPU and do not run here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, GPT2Config, LlamaConfig, PreTrainedModel

from srt_fast.model import attention, layer_kernels
from srt_fast.model.attention import packed_attention
from srt_fast.model.layer_kernels import (
    ARCHITECTURES,
    ROTARY,
    apply_layer_kernels,
    describe_kernels,
    uses_liger,
)
from srt_fast.types import Segments
from support.models import SMALL, make_model, make_policy

LLAMA = LlamaConfig(**SMALL)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models say that they are on CUDA."""
    monkeypatch.setattr(PreTrainedModel, "device", torch.device("cuda"))


def without_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def attention_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


# ---- the choice ----


def test_a_cpu_has_pytorchs():
    model = make_model(LLAMA)
    apply_layer_kernels(model, "auto")
    assert not uses_liger(model)
    expected = r"model.kernels: expected a CUDA device .* for 'liger', got cpu"
    with pytest.raises(ValueError, match=expected):
        apply_layer_kernels(model, "liger")


def test_without_the_package(on_cuda, monkeypatch):
    without_liger(monkeypatch)
    model = make_model(LLAMA)
    apply_layer_kernels(model, "auto")
    assert not uses_liger(model)
    expected = r"expected the package liger-kernel for 'liger', got none: pip install 'srt-fast\["
    with pytest.raises(ValueError, match=expected):
        apply_layer_kernels(model, "liger")


@pytest.mark.parametrize(
    "config, message",
    [
        (GPT2Config(n_embd=32, n_layer=1, n_head=4), "one of the architectures .*, got gpt2"),
        (LlamaConfig(**SMALL, hidden_act="gelu"), "hidden_act 'silu' .*, got 'gelu'"),
    ],
)
def test_models_that_liger_does_not_serve(config, message, on_cuda):
    pytest.importorskip("liger_kernel")
    model = make_model(config)
    apply_layer_kernels(model, "auto")
    assert not uses_liger(model)
    with pytest.raises(ValueError, match=message):
        apply_layer_kernels(model, "liger")


def test_torch_patches_nothing(on_cuda):
    model = make_model(LLAMA)
    apply_layer_kernels(model, "torch")
    assert not uses_liger(model)
    assert all("forward" not in vars(module) for module in model.modules())


# ---- Liger's layers ----


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernels", ["auto", "liger"])
def test_every_norm_mlp_and_attention_is_patched(architecture, kernels, on_cuda):
    pytest.importorskip("liger_kernel")
    settings = SMALL | dict(head_dim=8, rope_theta=1e4)
    model = make_model(AutoConfig.for_model(architecture, **settings))
    apply_layer_kernels(model, kernels)
    assert uses_liger(model)
    for name, module in model.named_modules():
        kind = type(module).__name__
        forward = vars(module).get("forward")
        if kind.endswith("RMSNorm"):
            assert forward.__func__.__qualname__ == "LigerRMSNorm.forward", name
        elif kind.endswith("MLP"):
            assert "SwiGLU" in forward.__func__.__qualname__, name
        elif kind.endswith("Attention"):
            original = vars(sys.modules[type(model).__module__])[ROTARY]
            assert forward.__func__.__globals__[ROTARY] is not original, name
        else:
            assert forward is None, name
    assert len(attention_layers(model)) == 2


def test_only_the_given_model_is_patched(on_cuda):
    """A second model of the architecture, made before or after, and transformers' own names."""
    pytest.importorskip("liger_kernel")
    modeling = sys.modules[type(make_model(LLAMA)).__module__]
    names = dict(vars(modeling))
    earlier = make_model(LLAMA)
    apply_layer_kernels(make_model(LLAMA), "liger")
    later = make_model(LLAMA)
    assert vars(modeling) == names
    for model in (earlier, later):
        assert not uses_liger(model)
        assert all("forward" not in vars(module) for module in model.modules())


def test_rope_is_ligers_for_packed_rows_and_pytorchs_for_batches(on_cuda, monkeypatch):
    """The patched attention layer gives the results of the original one."""
    rope = pytest.importorskip("liger_kernel.transformers.rope")
    model = make_model(LLAMA)
    modeling = sys.modules[type(model).__module__]
    calls = []

    def liger_rotary(query, key, cos, sin, position_ids=None, unsqueeze_dim=1):
        calls.append(len(query))
        return getattr(modeling, ROTARY)(query, key, cos, sin, unsqueeze_dim)

    monkeypatch.setattr(rope, "liger_rotary_pos_emb", liger_rotary)
    original = attention_layers(make_model(LLAMA))[0]
    patched = attention_layers(model)[0]
    apply_layer_kernels(model, "liger")
    for batch in (1, 2):
        hidden = torch.randn(batch, 5, SMALL["hidden_size"])
        embeddings = torch.randn(2, batch, 5, 8).unbind()
        expected, _ = original(hidden, embeddings, None)
        actual, _ = patched(hidden, embeddings, None)
        assert torch.equal(actual, expected)
    assert calls == [1]


# ---- the line that is logged ----


def test_description_on_a_cpu():
    assert describe_kernels(make_policy(LLAMA)) == (
        "kernels: attention per-sequence SDPA, other layers torch, "
        "LM head and loss srt_kernels (torch)"
    )


@pytest.mark.parametrize("window", [None, 4])
def test_torch_has_the_attention_that_cuda_takes(window, monkeypatch):
    """Grouped queries, with and without a window. Fake tensors have shapes and no data."""
    monkeypatch.setattr(attention, "attention_path", lambda *_: attention.TORCH_VARLEN)
    with FakeTensorMode():
        query = torch.empty(1, 4, 10, 16, dtype=torch.bfloat16)
        key = torch.empty(1, 2, 10, 16, dtype=torch.bfloat16)
        segments = Segments(
            query_lengths=[6, 4],
            key_lengths=[6, 9],
            cu_queries=torch.empty(3, dtype=torch.int32),
            cu_keys=torch.empty(3, dtype=torch.int32),
            key_index=torch.empty(15, dtype=torch.int64),
        )
        options = dict(segments=segments, sliding_window=window)
        output, _ = packed_attention(nn.Module(), query, key, key, None, **options)
    assert output.shape == (1, 10, 4, 16)


@pytest.mark.parametrize(
    "has_flash, dtype, path",
    [
        (True, torch.bfloat16, "flash-attn varlen"),
        (False, torch.bfloat16, "torch varlen_attn"),
        (True, torch.float32, "per-sequence SDPA"),
    ],
)
def test_description_on_cuda(has_flash, dtype, path, on_cuda, monkeypatch):
    pytest.importorskip("liger_kernel")
    monkeypatch.setattr(attention, "HAS_FLASH_ATTENTION", has_flash)
    monkeypatch.setattr(layer_kernels, "use_triton", lambda tensor: True)
    model = make_model(LLAMA)
    head = SimpleNamespace(weight=model.lm_head.weight)
    policy = SimpleNamespace(model=model, device=model.device, compute_dtype=dtype, head=head)
    loss = "LM head and loss srt_kernels (triton)"
    expected = f"kernels: attention {path}, other layers torch, {loss}"
    assert describe_kernels(policy) == expected
    apply_layer_kernels(model, "auto")
    expected = f"kernels: attention {path}, RMSNorm/RoPE/SwiGLU liger, {loss}"
    assert describe_kernels(policy) == expected
