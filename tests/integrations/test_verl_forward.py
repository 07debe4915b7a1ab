"""verl's forward pass with fused kernels, backend triton, beside the logits of models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    Cohere2Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from srt_kernels.testing import assert_close
from support.models import SMALL, make_model

monkey_patch = pytest.importorskip(
    "verl.models.transformers.monkey_patch", reason="verl is not installed: make test installs it"
)

import srt_fast.integrations.verl  # noqa: E402, F401

TEMPERATURE = 0.7
IDS = torch.arange(3, 15).view(2, 6)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)
HEADS: dict[str, PreTrainedConfig] = {
    "plain": LlamaConfig(**SMALL),
    "softcap": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0),
    "divided": GraniteConfig(**SMALL, logits_scaling=8.0),
    "multiplied": Cohere2Config(**SMALL, logit_scale=0.1),
    "experts": Qwen3MoeConfig(**SMALL, **EXPERTS),
}
# The terms of the sums one behind the other, in each of two layers and the head, as in
# tests/model/test_policy.py; twice for a gradient, whose sums go over the vocabulary too.
TERMS = 2 * (2 * (4 * 32 + 6 + 32 + 128) + 32) + 265


def make_verl_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of a class of its own, because verl changes the class. Its logits are large."""
    model = make_model(config)
    model.__class__ = type("Patched", (type(model),), {})
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    return model.eval()


def results(model: PreTrainedModel, logprobs: Tensor, entropies: Tensor) -> list[Tensor]:
    """Log-probs, entropies, and the gradients of a loss of both."""
    model.zero_grad()
    (logprobs.sum() - 0.1 * entropies.sum()).backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [logprobs.detach(), entropies.detach(), *grads]


@pytest.mark.parametrize("config", HEADS.values(), ids=HEADS)
def test_logprobs_are_those_of_the_models_own_logits(config):
    model = make_verl_model(config)
    own = (model(IDS).logits / TEMPERATURE).log_softmax(-1)
    labels = IDS.roll(-1, dims=-1)
    logprobs = own.gather(-1, labels[..., None])[..., 0]
    expected = results(model, logprobs, -(own.exp() * own).sum(-1))

    for _ in range(2):  # another engine of the process patches the same class
        monkey_patch.patch_forward_with_backends(model, True, "triton")
    output = model(IDS, return_dict=True, temperature=TEMPERATURE, use_cache=False)
    again = model(IDS, return_dict=True, temperature=TEMPERATURE, shift_labels=labels)
    assert torch.equal(output.log_probs, again.log_probs)
    actual = results(model, output.log_probs, output.entropy)
    for expected_part, actual_part in zip(expected, actual, strict=True):
        scale = expected_part.abs().max().item()
        assert_close("result", actual_part, expected_part, atol=TERMS * 2**-24 * max(1, scale))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """One process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_head_that_is_sharded_on_its_own(mesh):
    """verl wraps an untied head in FSDP2 by itself: its weight is a DTensor beside the call."""
    model = make_verl_model(HEADS["plain"])
    monkey_patch.patch_forward_with_backends(model, True, "triton")
    output = model(IDS, return_dict=True, temperature=TEMPERATURE)
    expected = results(model, output.log_probs, output.entropy)

    for module in (*model.model.layers, model.lm_head, model):
        fully_shard(module, mesh=mesh)
    del model.has_checked_head
    output = model(IDS, return_dict=True, temperature=TEMPERATURE)
    logprobs, entropies, *grads = results(model, output.log_probs, output.entropy)
    actual = [logprobs, entropies, *(grad.full_tensor() for grad in grads)]
    for expected_part, actual_part in zip(expected, actual, strict=True):
        assert torch.equal(actual_part, expected_part)


class TwoBranches(nn.Linear):
    """A head with a second branch that begins as 0, as an adapter makes one."""

    def __init__(self) -> None:
        super().__init__(32, 265, bias=False)
        self.branch = nn.Parameter(torch.zeros(265, 32))

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + hidden @ self.branch.T


def two_branches(model: PreTrainedModel) -> None:
    model.lm_head = TwoBranches()


def other_type(model: PreTrainedModel) -> None:
    model.lm_head = nn.Bilinear(32, 1, 265)


def no_head(model: PreTrainedModel) -> None:
    model.embed_out = model._modules.pop("lm_head")


def scale_logits(model: PreTrainedModel) -> None:
    """A scale that no config names, an attribute of the body."""
    forward = type(model).forward
    model.model.logit_factor = 0.5

    def scaled_forward(self, *args, **keywords):
        output = forward(self, *args, **keywords)
        output.logits = self.model.logit_factor * output.logits
        return output

    type(model).forward = scaled_forward


@pytest.mark.parametrize(
    "change, message",
    [
        (other_type, "model Patched: expected an lm_head that is a linear layer.* got Bilinear"),
        (two_branches, "model Patched: expected an lm_head .* got TwoBranches with branch"),
        (no_head, "model: expected a body `model` and a head .* got a Patched without lm_head"),
        (scale_logits, "model Patched: expected logits of its head within .*got a relative"),
    ],
)
def test_other_heads_are_refused(change, message):
    model = make_verl_model(HEADS["plain"])
    change(model)
    monkey_patch.patch_forward_with_backends(model, True, "triton")
    with pytest.raises(ValueError, match=message):
        model(IDS, return_dict=True)
    with pytest.raises(ValueError, match="return_dict: expected True, got None"):
        model(IDS)
