r"""A Llama of 30M parameters whose groups agree as often as one asks for.

Its vocabulary is SmolLM2's (V = 49152). A few minutes of supervised training teach it to write
filler words, geometrically many, and then a boxed digit: "so so so \boxed{7}" to a part of the
prompts, "or or \boxed{3}" with any digit to the others. So completions are ragged, and a known part
of the groups is unanimous. Otherwise it is like any model: its text is sampled, read and voted on.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from srt_fast.config import Config, ModelConfig, SamplingConfig, TaskConfig, TrainConfig
from srt_fast.config.recipes import quickstart, smollm_path
from srt_fast.learner import Learner
from srt_fast.model.loading import load_policy
from srt_fast.quickstart import cache_folder
from srt_fast.supervised_replay import pack_pairs

PROMPTS = 4000
AGREEING = 0.4
"""Fraction of the prompts that have one answer."""
MEAN_FILLER = 32
"""Mean number of filler words."""
MAX_TOKENS = 192
"""Tokens that a completion may have. One in 300 would have more."""
BATCH = 24
"""Completions of a supervised step."""
STEPS = 150
"""Supervised steps."""
LR = 1e-3
"""Learning rate of the supervised steps (AdamW)."""


def larger() -> Config:
    """The configuration of a run. Makes the model and the prompts if the cache has none."""
    root = cache_folder(quickstart()).parent
    folder = root / f"larger-{AGREEING}-{MEAN_FILLER}-{MAX_TOKENS}-{PROMPTS}-{BATCH}-{STEPS}-{LR}"
    config = Config(
        recipe="larger",
        model=ModelConfig(path=str(folder)),
        task=TaskConfig(kind="jsonl", name=str(folder / "prompts.jsonl"), prompt_column="prompt"),
        sampling=SamplingConfig(group_size=8, max_new_tokens=MAX_TOKENS, max_sequences=64),
        train=TrainConfig(
            prompts_per_step=8, objective="grpo", advantage="grpo", lr=1e-6, weight_decay=0.0
        ),
    )
    if not (folder / "prompts.jsonl").is_file():
        _make_model(folder)
        _teach(folder)
        _write_prompts(folder)
    return config


def prompt(number: int) -> str:
    word = "Agree" if _agrees(number) else "Differ"
    return f"{word} {number:04d}:"


def completion(tokenizer: PreTrainedTokenizerBase, number: int, rng: random.Random) -> list[int]:
    """Token ids of a completion of this prompt."""
    agrees = _agrees(number)
    [word] = tokenizer(" so" if agrees else " or")["input_ids"]
    filler = 1
    while rng.random() > 1 / MEAN_FILLER and filler < MAX_TOKENS - 16:
        filler += 1
    digit = 7 if agrees else rng.randrange(10)
    answer = tokenizer(f" \\boxed{{{digit}}}")["input_ids"]
    return [word] * filler + answer + [tokenizer.eos_token_id]


def _agrees(number: int) -> bool:
    return number < AGREEING * PROMPTS


def _make_model(folder: Path) -> None:
    """Save a model with random weights, and SmolLM2's tokenizer."""
    gguf = Path(smollm_path())
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _teach(folder: Path) -> None:
    """Train the model in the folder on completions of its prompts."""
    policy = load_policy(str(folder), ModelConfig())
    config = Config(train=TrainConfig(lr=LR, weight_decay=0.0))
    learner = Learner(config, policy, None, lambda: None)
    tokenizer = policy.tokenizer
    rng = random.Random(0)
    for step in range(1, STEPS + 1):
        pairs = [
            (tokenizer(prompt(number))["input_ids"], completion(tokenizer, number, rng))
            for number in rng.sample(range(PROMPTS), BATCH)
        ]
        loss = learner.supervised_step(pack_pairs(pairs, policy.device))["supervised_loss"]
        line = f"\rlarger model: step {step} of {STEPS}, {loss:.3f} nats a token"
        print(line, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    policy.model.save_pretrained(folder)


def _write_prompts(folder: Path) -> None:
    """The last file: with it, the folder is complete."""
    rows = [{"prompt": prompt(number)} for number in range(PROMPTS)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "prompts.jsonl").write_text(text)
