"""The kinds of train.optimizer: what they compute, and that resumed runs are the whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig

from srt_fast.config import Config, TrainConfig, override
from srt_fast.distributed.world import ONE_PROCESS
from srt_fast.errors import CheckpointError
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy
from srt_fast.optimizer import clip_gradients, make_optimizer
from srt_fast.quickstart import build_tokenizer
from srt_fast.train import Trainer
from support.models import SMALL, make_model
from support.optimizer import state_bits

LR = 1e-3


@pytest.fixture
def config(tiny_config, tmp_path) -> Config:
    """A model whose matrices are large enough for 8 bits and have one shape. Its votes agree."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 4}
    model = make_model(LlamaConfig(**SMALL | sizes))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    changes = {"model.path": str(tmp_path / "model"), "train.lr": LR, "monitor.every": 0}
    return override(tiny_config, changes)


def train(config: Config, folder: Path, ends: tuple[int, ...]) -> Trainer:
    """Train to each of these steps; after the first one, from the last checkpoint."""
    for number, steps in enumerate(ends):
        changes = {
            "run_dir": str(folder),
            "train": {"steps": steps, "minibatches": 2},
        }
        resume = folder if number else None
        trainer = Trainer(override(config, changes), quiet=True, resume=resume)
        trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("optimizer", "dtype", "state"),
    [
        ("adamw_fused", "bfloat16", "master"),
        ("adamw_8bit", "float32", "codes"),
    ],
)
def test_a_resumed_run_is_the_whole_run(config, tmp_path, optimizer, dtype, state):
    """The same bits of weights and of the optimizer's state: 8-bit state, master weights."""
    if optimizer == "adamw_8bit":
        pytest.importorskip("torchao")
    config = override(config, {"train.optimizer": optimizer, "model.dtype": dtype})
    whole = train(config, tmp_path / "whole", (2,))
    parts = train(config, tmp_path / "parts", (1, 2))
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    steps = [(row["updates"], row["lr"]) for row in rows if row["kind"] == "train"]
    assert steps == [(2, LR), (2, LR)]
    expected = dict(whole.parts.policy.weights())
    for name, weight in parts.parts.policy.weights():
        assert weight.equal(expected[name]), name
    bits = state_bits(parts.parts.learner.optimizer)
    assert bits == state_bits(whole.parts.learner.optimizer)
    assert any(state in place for place in bits)


@pytest.mark.parametrize("kind", ["adamw", "adamw_fused"])
def test_bfloat16_weights_move_as_float32_weights_do(kind):
    """100 steps at lr 1e-6, each far below what bfloat16 resolves: they differ by one rounding."""
    train_config = TrainConfig(lr=1e-6, optimizer=kind)
    generator = torch.Generator().manual_seed(0)
    start = (0.02 * torch.randn(1000, generator=generator)).bfloat16()
    weights = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())]
    optimizers = [make_optimizer([weight], train_config) for weight in weights]
    drift = torch.randn(1000, generator=generator)
    for _ in range(100):
        gradient = (drift + torch.randn(1000, generator=generator)).bfloat16()
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.to(weight.dtype)
            optimizer.step()
    narrow, wide = weights
    assert narrow.equal(wide.bfloat16())
    # A weight of 0.02 moves by up to 1e-4, and half a step of bfloat16 is 6e-5 there.
    assert (narrow != start).float().mean() > 0.5


def test_a_state_without_master_weights_is_refused():
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    plain = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    plain.step()
    with pytest.raises(CheckpointError, match="optimizer: expected float32 master weights"):
        make_optimizer([weight], TrainConfig()).load_state_dict(plain.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("device", "is_fused"), [("cpu", None), ("cuda", True)])
def test_adamw_is_fused_on_cuda(dtype, device, is_fused):
    """Fake tensors have a device and no data."""
    with FakeTensorMode():
        weight = torch.empty(3, 2, device=device, dtype=dtype, requires_grad=True)
        optimizer = make_optimizer([weight], TrainConfig())
    assert optimizer.param_groups[0]["fused"] is is_fused


def test_fused_adamw_computes_the_same(tiny_model, tiny_config):
    """Three steps with gradients of many sizes."""
    weights = {}
    for kind in ("adamw", "adamw_fused"):
        policy = load_policy(tiny_model, tiny_config.model)
        parameters = list(policy.model.parameters())
        optimizer = make_optimizer(parameters, TrainConfig(lr=LR, optimizer=kind))
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in parameters:
                noise = torch.randn(2, *parameter.shape, generator=generator)
                parameter.grad = noise[0] * torch.exp(4 * noise[1])
            optimizer.step()
        weights[kind] = parameters
    # A step is at most lr * (1 - beta1) / sqrt(1 - beta2) = 3.2 lr. Both ways round it some ten
    # times, and the weight once.
    for default, fused in zip(weights["adamw"], weights["adamw_fused"], strict=True):
        rounding = 2**-24 * (10 * 3.2 * LR + default.abs().max())
        assert (fused - default).abs().max() <= 3 * 2 * rounding


@pytest.mark.parametrize(
    ("place", "value", "name"),
    [
        (lambda layer: layer.bias.data, float("nan"), "weight of 1.bias"),
        (lambda layer: layer.weight.grad, -float("inf"), "gradient of 1.weight"),
        (lambda layer: layer.weight.grad, 3e38, "sum of the gradients' squares"),
    ],
)
def test_what_is_not_finite_is_named(place, value, name):
    """Before the gradients are scaled, which would spread it. A weight comes before a gradient."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    place(model[1]).fill_(value)
    if value != value:
        model[0].weight.grad.fill_(value)
    with pytest.raises(ValueError, match=f"^{name}: expected finite values"):
        clip_gradients(model, 1.0, ONE_PROCESS)
    assert model[0].bias.grad.equal(torch.ones(2))


def test_8_bits_without_torchao(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match=r"train.optimizer: .*pip install 'srt-fast\[optim\]'"):
        make_optimizer(parameters, TrainConfig(optimizer="adamw_8bit"))
