"""The embedded default model: a tiny Llama and byte-level tokenizer in Hugging Face format, warm-started on sums.

Left out: nothing of the format. The folder that this writes loads with AutoModelForCausalLM like any other, so the
quickstart runs every line that a 7B model runs.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from srt_fast.config import Config, EvalConfig
from srt_fast.evaluation.evaluate import evaluate
from srt_fast.model.loading import load_policy
from srt_fast.model.packing import pack
from srt_fast.model.policy import Policy
from srt_fast.sampling.base import Completion, pack_completions
from srt_fast.sampling.hf import HFSampler
from srt_fast.tasks import make_task
from srt_fast.tasks.arithmetic import ArithmeticTask, worked_solution
from srt_fast.tasks.prompt import prompt_ids
from srt_fast.types import Problem
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.lm_head.linear_logprob import linear_logprob

FORMAT = 1  # part of the cache key: raise it when the data or the recipe of the warm start changes
HELD_OUT = 256  # sums that pass@1 is measured on
SPECIALS = ("<|pad|>", "<|begin|>", "<|end|>")
MERGES = (("\\", "b"), ("o", "x"), ("\\b", "ox"), ("e", "d"), ("\\box", "ed"), ("\\boxed", "{"))
"""Byte-pair merges: digits stay single tokens, and \\boxed{ becomes one."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over all 256 bytes with six merges: any text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIALS, *alphabet, *("".join(pair) for pair in MERGES)]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(MERGES))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    pad, begin, end = SPECIALS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        clean_up_tokenization_spaces=False,
    )


def build_model(config: Config, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of warm_start.hidden_size and warm_start.layers with seeded random weights."""
    width = config.warm_start.hidden_size
    torch.manual_seed(config.warm_start.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=config.warm_start.layers,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def cache_folder(config: Config) -> Path:
    """Where the warm-started model of this configuration is kept: $XDG_CACHE_HOME/srt-fast/quickstart-<hash>."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    task = [config.task.params, config.task.template, config.task.answer_rule, config.task.verifier]
    recipe = [FORMAT, asdict(config.warm_start), task]
    return (
        root
        / "srt-fast"
        / f"quickstart-{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]}"
    )


def ensure_warm_started(
    config: Config, progress: Callable[..., None], checkpoint: Callable[[], None]
) -> Path:
    """The cached model of this configuration, trained first where there is none. Returns its folder.

    `progress(step, **values)` is called as the warm start goes; `checkpoint()` may raise to leave early (a signal).
    Raises ValueError if pass@1 does not reach the band within warm_start.max_steps.
    """
    folder = cache_folder(config)
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    try:
        tokenizer = build_tokenizer()
        build_model(config, tokenizer).save_pretrained(building)
        tokenizer.save_pretrained(building)
        policy = load_policy(str(building), replace(config.model, dtype="float32", autocast="off"))
        _supervise(policy, config, progress, checkpoint)
        policy.model.save_pretrained(building)
        building.rename(folder)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # another process finished first, with the same model
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _supervise(
    policy: Policy, config: Config, progress: Callable[..., None], checkpoint: Callable[[], None]
) -> None:
    """Cross-entropy on worked sums until held-out pass@1 lies in the band.

    A step may jump over the band: then the weights of the last evaluation come back and the learning rate is halved.
    """
    warm = config.warm_start
    task = make_task(config)
    sampler = HFSampler(policy, HELD_OUT, checkpoint)
    # Judged the same way whatever the run's own evaluation and sampling are: the cached model serves all of them.
    judging = EvalConfig(prompts=HELD_OUT, samples=1, temperature=1.0)
    longest = 2 * task.max_digits + 5  # the sum's columns twice, \boxed{, } and the end
    config = replace(config, sampling=replace(config.sampling, max_new_tokens=longest))
    reader = AnswerReader(policy.tokenizer, config.task.answer_rule)
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=warm.lr, betas=(0.9, 0.95), weight_decay=0.01
    )
    rng = random.Random(config.warm_start.seed)
    scale, pass1 = 1.0, 0.0
    before = copy.deepcopy((policy.model.state_dict(), optimizer.state_dict(), pass1))
    for step in range(1, warm.max_steps + 1):
        checkpoint()
        for group in optimizer.param_groups:
            group["lr"] = warm.lr * scale * min(1.0, step / 100)
        started = time.perf_counter()
        loss, tokens = _supervised_step(policy, optimizer, task, config, rng)
        pace = tokens / (time.perf_counter() - started)
        if step % (40 if pass1 < 0.5 * warm.pass1_low else 10) == 0:
            result = evaluate(policy, sampler, reader, task, config, judging)
            pass1 = result["pass1"]
            if warm.pass1_low <= pass1 <= warm.pass1_high:
                progress(step, loss=loss, pass1=pass1, tokens_per_second=pace)
                return
            if pass1 > warm.pass1_high:
                policy.model.load_state_dict(before[0])
                optimizer.load_state_dict(before[1])
                scale, pass1 = scale / 2, before[2]
            before = copy.deepcopy((policy.model.state_dict(), optimizer.state_dict(), pass1))
        progress(step, loss=loss, pass1=pass1, tokens_per_second=pace)
    raise ValueError(
        f"warm_start.max_steps: expected held-out pass@1 between {warm.pass1_low} and {warm.pass1_high} "
        f"within {warm.max_steps} supervised steps, got {pass1:.3f}"
    )


def _sloppy(problem: Problem, rng: random.Random, slip: float) -> Problem:
    """The problem with a wrong gold answer, where a column of the sum slipped."""
    columns = problem.gold.zfill(problem.prompt.index("+") + 1)
    columns = "".join(str(rng.randrange(10)) if rng.random() < slip else digit for digit in columns)
    return replace(problem, gold=str(int(columns)))


def _supervised_step(
    policy: Policy, optimizer, task: ArithmeticTask, config: Config, rng: random.Random
) -> tuple[float, int]:
    """One step of cross-entropy on the solutions' tokens; returns the loss in nats a token, and the tokens of the pass."""
    tokenizer, warm = policy.tokenizer, config.warm_start
    problems = [task.train(rng.getrandbits(48)) for _ in range(warm.batch_size)]
    solutions = tokenizer(
        [worked_solution(_sloppy(p, rng, warm.slip)) for p in problems], add_special_tokens=False
    )["input_ids"]
    completions = [
        torch.tensor([*ids, tokenizer.eos_token_id], device=policy.device) for ids in solutions
    ]
    rollouts = pack_completions(
        [Completion(c, torch.zeros_like(c), truncated=False) for c in completions],
        [prompt_ids(p, config.task, tokenizer) for p in problems],
        samples=1,
    )
    everything = torch.arange(len(completions), device=policy.device)
    [batch] = pack(rollouts, torch.ones_like(everything), everything, token_budget=2**62)
    hidden = policy.hidden(batch.input_ids, batch.position_ids, batch.cu_input)
    loss = -linear_logprob(hidden, policy.head.weight, batch.targets, row_index=batch.row_index)[
        0
    ].mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), len(batch.input_ids)
