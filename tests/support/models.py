"""Small random models for tests of the policy, and how far rounding may move results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GraniteConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from srt_fast.config import ModelConfig
from srt_fast.model.attention import ATTENTION
from srt_fast.model.loading import load_policy
from srt_fast.model.policy import Policy
from srt_fast.quickstart import build_tokenizer

SMALL: dict[str, Any] = dict(
    vocab_size=265,
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

ARCHITECTURES = {
    "learned positions, biases, dropout": GPT2Config(
        vocab_size=265,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "sliding window shorter than a sequence": MistralConfig(**SMALL, sliding_window=4),
    "query norms, tied head": Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True),
    "scaled logits": GraniteConfig(**SMALL, logits_scaling=8.0),
}

SMALL_WARM_START: dict[str, Any] = {
    "task.params": {"max_digits": 1},
    "warm_start": {
        "hidden_size": 64,
        "layers": 2,
        "batch_size": 64,
        "lr": 1e-2,
        "max_steps": 600,
    },
}
"""Changes of the quickstart: one-digit sums, and a model that learns them in seconds."""


def make_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A random model with packed attention. The same on every call."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)


def make_policy(
    config: PreTrainedConfig, *, share_prompts: bool = False, **settings: Any
) -> Policy:
    """A random policy. settings: of ModelConfig."""
    return Policy(
        make_model(config),
        build_tokenizer(),
        ModelConfig(**settings),
        share_prompts=share_prompts,
    )


def sharpen(model: str, folder: Path) -> str:
    """A copy of a model with sharp distributions: votes agree, labels recur and steps train."""
    policy = load_policy(model, ModelConfig())
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(20)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return str(folder)


def speak_digits(model: str, folder: Path, *, ends: bool = False) -> str:
    """A copy of a model that writes 0, 1 and 2 at random: answers recur, and some are verdicts.

    ends: it ends its completions, at random too.

    The first number of each hidden state is made large and constant. Through it the head takes all
    other tokens away. The logits of these are close.
    """
    policy = load_policy(model, ModelConfig())
    spoken = policy.tokenizer.convert_tokens_to_ids(list("012"))
    if ends:
        spoken.append(policy.tokenizer.eos_token_id)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[:, 0] = 0.3
        head = policy.model.lm_head.weight
        head[:, 0] = -3.0
        head[spoken] *= 8
        head[spoken, 0] = 0.0
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return str(folder)


def rounding_error(terms: int, size: float, unit_roundoff: float) -> float:
    """How far two sums of `terms` rounded terms of about `size` may be apart.

    A sum of n terms is off by about sqrt(n) unit roundoffs of its size. Two sums, 4 standard
    deviations: a factor of 8.
    """
    return 8 * math.sqrt(terms) * unit_roundoff * size
