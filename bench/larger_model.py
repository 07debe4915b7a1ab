r"""A Llama of 30M parameters over SmolLM2's vocabulary (V = 49152), whose groups agree as often as one asks for.

It is taught in a few minutes to write filler words, of which there are geometrically many, and then a boxed digit: "so so
so \boxed{7}" to a part of the prompts, "or or \boxed{3}" with any digit to the others. So completions are ragged and a
known part of the groups is unanimous, and everything else is as with any model: its text is sampled, read and voted on.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from srt_fast.config import Config, ModelConfig, SamplingConfig, TaskConfig, TrainConfig
from srt_fast.config.recipes import quickstart, smollm_path
from srt_fast.learner import Learner
from srt_fast.model.loading import load_policy
from srt_fast.quickstart import cache_folder
from srt_fast.supervised_replay import as_rollouts

AGREE = 0.4  # of the prompts have one answer
FILLER, LONGEST = (
    32,
    192,
)  # mean number of filler words; tokens that a completion may have, which one in 300 would exceed
PROMPTS = 4000
BATCH, STEPS, LR = 24, 150, 1e-3  # of the supervised steps: completions in each, how many, AdamW


def prompt(number: int) -> str:
    return f"{'Agree' if number < AGREE * PROMPTS else 'Differ'} {number:04d}:"


def completion(tokenizer: PreTrainedTokenizerFast, number: int, rng: random.Random) -> list[int]:
    agree = number < AGREE * PROMPTS
    [word] = tokenizer(" so" if agree else " or")["input_ids"]
    filler = 1
    while rng.random() > 1 / FILLER and filler < LONGEST - 16:
        filler += 1
    digit = 7 if agree else rng.randrange(10)
    return (
        [word] * filler + tokenizer(f" \\boxed{{{digit}}}")["input_ids"] + [tokenizer.eos_token_id]
    )


def larger() -> Config:
    """A run of it; makes model and prompts first where the cache of the embedded model does not have them."""
    root = cache_folder(quickstart()).parent
    folder = root / f"larger-{AGREE}-{FILLER}-{LONGEST}-{PROMPTS}-{BATCH}-{STEPS}-{LR}"
    config = Config(
        recipe="larger",
        model=ModelConfig(path=str(folder)),
        task=TaskConfig(kind="jsonl", name=str(folder / "prompts.jsonl"), prompt_column="prompt"),
        sampling=SamplingConfig(group_size=8, max_new_tokens=LONGEST, max_sequences=64),
        train=TrainConfig(
            prompts_per_step=8, objective="grpo", advantage="grpo", lr=1e-6, weight_decay=0.0
        ),
    )
    if not (folder / "prompts.jsonl").is_file():
        _make(folder)
    return config


def _make(folder: Path) -> None:
    gguf = Path(smollm_path())
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
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
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy, rng = load_policy(str(folder), ModelConfig()), random.Random(0)
    learner = Learner(
        Config(train=TrainConfig(lr=LR, weight_decay=0.0)), policy, None, lambda: None
    )
    for step in range(1, STEPS + 1):
        chosen = rng.sample(range(PROMPTS), BATCH)
        pairs = [
            (tokenizer(prompt(number))["input_ids"], completion(tokenizer, number, rng))
            for number in chosen
        ]
        loss = learner.supervise(as_rollouts(pairs, policy.device))["supervised_loss"]
        print(
            f"\rlarger model: step {step} of {STEPS}, {loss:.3f} nats a token",
            end="",
            file=sys.stderr,
            flush=True,
        )
    print(file=sys.stderr)
    policy.model.save_pretrained(folder)
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt(n)}) + "\n" for n in range(PROMPTS))
    )
