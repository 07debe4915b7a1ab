"""The kinds of train.optimizer: what they compute, and that resumed runs are the whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from srt_fast.config import Config, TrainConfig, override
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy
from srt_fast.optimizer import make_optimizer
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


def train(config: Config, folder: Path, ends: tuple[int, ...], optimizer: str) -> Trainer:
    """Train to each of these steps; after the first one, from the last checkpoint."""
    for number, steps in enumerate(ends):
        changes = {
            "run_dir": str(folder),
            "train": {"optimizer": optimizer, "steps": steps, "minibatches": 2},
        }
        resume = folder if number else None
        trainer = Trainer(override(config, changes), quiet=True, resume=resume)
        trainer.train()
    return trainer


@pytest.mark.parametrize("optimizer", ["adamw_fused", "adamw_8bit"])
def test_a_resumed_run_is_the_whole_run(config, tmp_path, optimizer):
    """The same bits of weights and of the optimizer's state, also of 8-bit state."""
    if optimizer == "adamw_8bit":
        pytest.importorskip("torchao")
    whole = train(config, tmp_path / "whole", (2,), optimizer)
    parts = train(config, tmp_path / "parts", (1, 2), optimizer)
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    steps = [(row["updates"], row["lr"]) for row in rows if row["kind"] == "train"]
    assert steps == [(2, LR), (2, LR)]
    expected = dict(whole.parts.policy.weights())
    for name, weight in parts.parts.policy.weights():
        assert weight.equal(expected[name]), name
    bits = state_bits(parts.parts.learner.optimizer)
    assert bits == state_bits(whole.parts.learner.optimizer)
    assert any("codes" in place for place in bits) == (optimizer == "adamw_8bit")


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


def test_8_bits_without_torchao(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match=r"train.optimizer: .*pip install 'srt-fast\[optim\]'"):
        make_optimizer(parameters, TrainConfig(optimizer="adamw_8bit"))
