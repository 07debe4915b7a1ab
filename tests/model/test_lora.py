"""Adapters: what they compute, which weights they write and read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from srt_fast.config import LoRAConfig, ModelConfig
from srt_fast.model.loading import check_path, load_adapted, load_policy
from srt_fast.model.lora import TEACHER, TRAINED
from srt_fast.model.lora_policy import LoRAPolicy
from srt_fast.quickstart import build_tokenizer
from srt_fast.run.checkpoint_writer import CheckpointWriter, Contents
from srt_fast.types import Segments
from support.models import SMALL, make_model, rounding_error

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
RANK = 4
GPT2 = GPT2Config(
    vocab_size=265, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
)
TARGETS = {
    "head": (LlamaConfig(**SMALL), ("q_proj", "down_proj", "lm_head")),
    "tied head, weights stored transposed": (GPT2, ("all-linear",)),
}
# The terms of the sums one behind the other: see tests/model/test_policy.py. Adapters add theirs.
TERMS = 2 * (4 * 32 + 7 + 32 + 128) + 32 + 2 * 7 * (32 + RANK)


def save(config: Any, folder: Path) -> str:
    make_model(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def adapted(folder: str, targets: tuple[str, ...], **settings: Any) -> LoRAPolicy:
    """A policy whose adapters are not 0."""
    lora = LoRAConfig(r=RANK, target=targets)
    policy = load_adapted(folder, ModelConfig(lora=lora, **settings), with_teacher=True)
    torch.manual_seed(1)
    for weight in policy.own_weights().values():
        torch.nn.init.normal_(weight, std=0.1)
    return policy


def packed_logits(policy: LoRAPolicy) -> Tensor:
    """[L, V] of the head on packed hidden states, as the loss sees them."""

    def forward() -> Tensor:
        length = IDS.shape[1]
        cu_seqlens = torch.tensor([0, length], dtype=torch.int32)
        segments = Segments.of_sequences([length], cu_seqlens)
        hidden = policy.hidden(IDS[0], torch.arange(length), segments)
        return hidden @ policy.head.weight.T

    return policy.run(forward)


def assert_near(actual: Tensor, expected: Tensor, unit_roundoff: float = 2**-24) -> None:
    tolerance = rounding_error(TERMS, expected.abs().max().item(), unit_roundoff)
    assert (actual - expected).abs().max() <= tolerance


@pytest.mark.parametrize("config, targets", TARGETS.values(), ids=TARGETS.keys())
def test_adapters_merged_and_not_merged_agree(config, targets, tmp_path):
    """The loss, the model, the written model and peft on the written adapter: the same logits."""
    base = save(config, tmp_path / "base")
    policy = adapted(base, targets)
    with torch.no_grad():
        logits = policy.model(IDS).logits[0]
        start = AutoModelForCausalLM.from_pretrained(base)(IDS).logits[0]
        assert (logits - start).abs().max() > 0.1 * start.abs().max()
        assert_near(packed_logits(policy), logits)
        assert_near(packed_logits(policy.view(None)), start)

        policy.save(tmp_path / "whole")
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
        assert_near(whole(IDS).logits[0], logits)

        write_checkpoint(policy, tmp_path)
        folder = tmp_path / "step-000001" / "model"
        by_peft: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        assert_near(by_peft(IDS).logits[0], logits)
        read = load_policy(str(folder), ModelConfig())
        assert read.model(IDS).logits[0].equal(logits)
    with pytest.raises(ValueError, match="expected a whole model, got .* srt-fast export"):
        check_path(str(folder))


def write_checkpoint(policy: LoRAPolicy, root: Path) -> None:
    contents = Contents.of(policy, {})
    writer = CheckpointWriter(root, 1, keep=1, link=root / "link", world=policy.world)
    writer.begin(contents, overwrite=False)
    writer.write(contents.tensors)
    writer.commit()


def test_gradients_are_those_of_the_models_own_logits(tmp_path):
    """To every adapter, the head's too, and to nothing else. Recomputed activations or not."""
    config, targets = TARGETS["head"]
    base = save(config, tmp_path / "base")
    policy = adapted(base, targets, gradient_checkpointing=True)
    policy.model.double()
    gradients = []
    for logits in (packed_logits(policy), policy.model(IDS).logits[0]):
        logits.square().sum().backward()
        gradients.append(
            {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}
        )
        policy.model.zero_grad()
    packed, own = gradients
    assert packed.keys() == own.keys()
    assert len(packed) == len(policy.own_weights()) == 2 * (2 * 2 + 1)
    for name, gradient in own.items():
        # Backward also sums over the vocabulary and the tokens.
        size = gradient.abs().max().item()
        assert size > 0
        bound = rounding_error(2 * TERMS + 265 + IDS.numel(), size, 2**-53)
        assert (packed[name] - gradient).abs().max() <= bound, name


def test_a_view_leaves_the_policy_as_it_was(tmp_path):
    config, targets = TARGETS["head"]
    policy = adapted(save(config, tmp_path / "base"), targets, dtype="bfloat16")
    assert {weight.dtype for weight in policy.own_weights().values()} == {torch.float32}
    flags = {name: weight.requires_grad for name, weight in policy.model.named_parameters()}
    teacher = policy.view(TEACHER)
    with torch.no_grad():
        logits = packed_logits(policy)
        assert not packed_logits(teacher).equal(logits)
        teacher.copy_adapter(policy)
        assert packed_logits(teacher).equal(logits)
        with policy.view(None).gathered_weights():
            assert not policy.model(IDS).logits[0].equal(logits)
        assert packed_logits(policy).equal(logits)
    assert flags == {name: weight.requires_grad for name, weight in policy.model.named_parameters()}
    trained = {name for name, is_trained in flags.items() if is_trained}
    assert len(trained) == len(policy.own_weights())
    assert all(f".{TRAINED}." in name for name in trained)


@pytest.mark.parametrize(
    "config, target, message",
    [
        (LlamaConfig(**SMALL), ("q_proj", "qq"), "model.lora.target: .* names .* got 'qq'"),
        (LlamaConfig(**SMALL), ("none",), "model.lora.target: .*none.* not found"),
        (LlamaConfig(**SMALL), ("embed_tokens",), "expected linear layers, got model.embed_tokens"),
        (
            LlamaConfig(**SMALL, tie_word_embeddings=True),
            ("lm_head",),
            "model.lora.target: expected an LM head of its own .* tied",
        ),
    ],
)
def test_targets_that_cannot_be_adapted(config, target, message, tmp_path):
    base = save(config, tmp_path / "base")
    with pytest.raises(ValueError, match=message):
        load_policy(base, ModelConfig(lora=LoRAConfig(r=RANK, target=target)))


@pytest.mark.parametrize(
    "settings", [{"dropout": 0.1}, {"target": ()}, {"target": ("all-linear", "x")}]
)
def test_settings_that_are_refused(settings):
    with pytest.raises(ValueError, match=f"model.lora.{min(settings)}: expected"):
        LoRAConfig(**settings)


def test_another_kind_of_adapter_is_refused(tmp_path):
    config, targets = TARGETS["head"]
    policy = adapted(save(config, tmp_path / "base"), targets)
    write_checkpoint(policy, tmp_path)
    settings = tmp_path / "step-000001" / "model" / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"use_rslora": false', '"use_rslora": true'))
    with pytest.raises(ValueError, match="expected an adapter of plain LoRA, got use_rslora"):
        load_policy(str(settings.parent), ModelConfig())
