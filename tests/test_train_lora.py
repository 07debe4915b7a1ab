"""Runs with adapters: what is trained and saved, resume, and the models that share the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from srt_fast.cli import main
from srt_fast.config import Config, override
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy
from srt_fast.train import Trainer
from support.models import sharpen

EVERYTHING = {
    # The starting model for the KL, a moving average as teacher, and a frozen start for labels.
    "reward": {"kind": "ema", "params": {"decay": 0.5, "final_decay": 0.5}},
    "train": {"reward_kl_coef": 0.1, "minibatches": 2, "lr": 1e-2},
    "monitor.every": 0,
    "sampling.temperature": 0.5,
}


@pytest.fixture
def config(tiny_config, tiny_model, tmp_path) -> Config:
    changes = {
        "model.path": sharpen(tiny_model, tmp_path / "sharp"),
        "model.lora": {"r": 4, "target": ("q_proj", "up_proj", "lm_head")},
        "checkpoint.every": 2,
        "checkpoint.keep": 9,
    }
    return override(tiny_config, changes | EVERYTHING)


def test_a_run_is_resumed_bit_for_bit_and_exported(config, tmp_path, capsys):
    whole = Path(config.run_dir)
    Trainer(config, quiet=True).train()
    weights = load_file(whole / "model" / "adapter_model.safetensors")
    changed = [name for name, weight in weights.items() if "lora_B" in name and weight.any()]
    assert len(changed) == len(weights) / 2 == 2 * 2 + 1
    rows = read_rows(whole / "metrics.jsonl")
    mismatches = [row["train_mismatch_max"] for row in rows if row.get("updates")]
    # A few fp32 roundings of logits up to 20: the loss has one head W + B A, the sampler two.
    assert mismatches and max(mismatches) < 1e-3
    kls = [row["kl"] for row in rows if "kl" in row]
    assert abs(kls[0]) < 1e-6 and kls[-1] > 1e-4  # of the policy to itself, at the first step
    [optimizer] = (whole / "model").resolve().parent.glob("optimizer/*.safetensors")
    assert all("lora_" in name and ".default." in name for name in load_file(optimizer))

    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed, symlinks=True)
    for step in (3, 4):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:06d}", ignore_errors=True)
    Trainer(override(config, {"run_dir": str(resumed)}), resume=resumed, quiet=True).train()
    again = load_file(resumed / "model" / "adapter_model.safetensors")
    assert all(weights[name].equal(again[name]) for name in weights)

    exported = tmp_path / "exported"
    assert main(["export", str(whole), str(exported)]) == 0
    model = AutoModelForCausalLM.from_pretrained(exported)
    start = AutoModelForCausalLM.from_pretrained(config.model.path)
    for name, weight in model.named_parameters():
        is_adapted = any(target in name for target in config.model.lora.target)
        assert torch.equal(weight, start.get_parameter(name)) != is_adapted, name
    capsys.readouterr()
    assert main(["eval", str(whole)]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["model"] == str(whole / "model")
    assert 0 <= scores["pass1"] <= 1


def test_a_run_on_4_bit_weights_is_resumed_and_evaluated(config, tmp_path, capsys):
    """The sampler's log-probs are the training pass's. A resumed run quantizes to the same bits."""
    changes = {"model.lora.quantize": "nf4", "train.steps": 3, "log.mfu": False}
    config = override(config, changes | {"checkpoint.every": 1})
    whole = Path(config.run_dir)
    Trainer(config, quiet=True).train()
    weights = load_file(whole / "model" / "adapter_model.safetensors")
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    rows = read_rows(whole / "metrics.jsonl")
    mismatches = [row["train_mismatch_max"] for row in rows if row.get("updates")]
    assert mismatches and max(mismatches) < 1e-3  # as above

    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed, symlinks=True)
    for step in (2, 3):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:06d}")
    Trainer(override(config, {"run_dir": str(resumed)}), resume=resumed, quiet=True).train()
    again = load_file(resumed / "model" / "adapter_model.safetensors")
    assert all(weights[name].equal(again[name]) for name in weights)

    exported = tmp_path / "exported"
    assert main(["export", str(whole), str(exported)]) == 0
    merged = load_policy(str(whole / "model"), config.model).named_weights()
    on_disk = load_file(exported / "model.safetensors")
    assert all(on_disk[name].equal(weight) for name, weight in merged)
    start = load_file(Path(config.model.path) / "model.safetensors")
    down = "model.layers.0.mlp.down_proj.weight"  # no adapter on it
    assert not on_disk[down].equal(start[down])

    capsys.readouterr()
    assert main(["eval", str(whole)]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    last = [row for row in rows if row["kind"] == "eval"][-1]
    assert scores["pass1"] == last["pass1"] and scores["vote_share"] == last["vote_share"]
