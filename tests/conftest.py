"""Shared fixtures: a tiny Llama with the quickstart's tokenizer, on disk and loaded."""

import os

# The tests compare exactly, on the CPU. This holds also on a machine with a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from srt_fast.config import Config, override
from srt_fast.config.recipes import quickstart
from srt_fast.model.loading import load_policy, quiet_transformers
from srt_fast.model.policy import Policy
from srt_fast.quickstart import build_tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random 2-layer Llama with grouped-query attention and a byte-level tokenizer."""
    quiet_transformers()
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tiny_policy(tiny_model: str) -> Policy:
    """The tiny model, loaded."""
    return load_policy(tiny_model, quickstart().model)


@pytest.fixture
def tiny_config(tiny_model: str, tmp_path: Path) -> Config:
    """A few fast steps of the tiny model on sums of one-digit numbers."""
    return override(
        quickstart(),
        {
            "model.path": tiny_model,
            "run_dir": str(tmp_path / "run"),
            "task.params": {"max_digits": 1},
            "task.answer_rule": "whole",
            "sampling": {"group_size": 4, "max_new_tokens": 3, "engine": "hf"},
            "train": {"steps": 4, "prompts_per_step": 6, "lr": 1e-3},
            "evaluation": {"every": 0, "prompts": 4, "samples": 2},
            "reward.kind": "majority",
            "monitor": {"every": 2, "prompts": 4, "samples": 2},
            "checkpoint.every": 0,
            "log": {"tensorboard": False, "sample_every": 2, "mfu": False},
        },
    )


LONGEST = (
    "test_interpreter.py",
    "test_faults.py",
    "test_train.py",
    "test_vllm.py",
    "test_train_ranks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first.

    `make test` gives whole files to its workers. The short files then fill the time of the other
    worker.
    """

    def rank(item: pytest.Item) -> int:
        name = item.path.name
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)
