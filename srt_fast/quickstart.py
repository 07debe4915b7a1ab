"""The embedded default model: a tiny Llama with a byte-level tokenizer, warm-started on sums.

Its folder is in Hugging Face format and loads with AutoModelForCausalLM. So the quickstart runs
every line that a 7B model runs.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from srt_fast.config import Config, EvalConfig, LoRAConfig
from srt_fast.evaluation.evaluate import evaluate
from srt_fast.model.loading import load_policy
from srt_fast.model.policy import Policy
from srt_fast.packing.micro_batches import pack
from srt_fast.sampling.base import Completion, pack_completions
from srt_fast.sampling.hf import HFSampler
from srt_fast.tasks.arithmetic import ArithmeticTask
from srt_fast.tasks.lessons import make_lesson
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.types import PackedSequences
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.lm_head.linear_logprob import linear_logprob

FORMAT = 3
"""A part of the cache key. Raise it when the data or the recipe of the warm start changes."""
TEST_SAMPLES = 4096
"""Samples that pass@1 is measured on. Its standard error is sqrt(p (1 - p) / 4096) <= 0.0078."""
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
    """The folder of this configuration's model: $XDG_CACHE_HOME/srt-fast/quickstart-<hash>."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    task = [config.task.params, config.task.template, config.task.answer_rule, config.task.verifier]
    settings = asdict(config.warm_start)
    if not settings["formats"]:
        del settings["formats"]  # a model that was cached before there were formats is the same
    recipe = [FORMAT, settings, task]
    return (
        root
        / "srt-fast"
        / f"quickstart-{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]}"
    )


def ensure_warm_started(
    config: Config, progress: Callable[..., None], checkpoint: Callable[[], None]
) -> Path:
    """The folder of this configuration's cached model. Trains the model first if there is none.

    `progress(step, **values)` is called during the warm start. `checkpoint()` may raise to leave
    early (a signal arrived). Raises ValueError if pass@1 does not reach the band within
    warm_start.max_steps.
    """
    folder = cache_folder(config)
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock"), checkpoint):
        if not (folder / "config.json").is_file():
            _warm_start(config, folder, progress, checkpoint)
    return folder


@contextlib.contextmanager
def _locked(path: Path, checkpoint: Callable[[], None]) -> Iterator[None]:
    """Hold the file lock. The other processes of this machine wait for the one model."""
    lock = FileLock(path)
    while not lock.is_locked:
        checkpoint()
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=1)
    try:
        yield
    finally:
        lock.release()


def _warm_start(
    config: Config,
    folder: Path,
    progress: Callable[..., None],
    checkpoint: Callable[[], None],
) -> None:
    """Train the model aside, and move it to `folder`."""
    building = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    try:
        tokenizer = build_tokenizer()
        build_model(config, tokenizer).save_pretrained(building)
        tokenizer.save_pretrained(building)
        whole = replace(config.model, dtype="float32", autocast="off", lora=LoRAConfig())
        policy = load_policy(str(building), whole)
        WarmStart(policy, config, progress, checkpoint).run()
        policy.model.save_pretrained(building)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


class WarmStart:
    """Supervised training on worked sums, until held-out pass@1 lies in the band.

    A step may jump over the band. Then the weights of the last test come back, and the learning
    rate is halved. The test is the same for all runs, because they share the cached model.
    """

    def __init__(
        self,
        policy: Policy,
        config: Config,
        progress: Callable[..., None],
        checkpoint: Callable[[], None],
    ) -> None:
        self._policy = policy
        self._progress = progress
        self._checkpoint = checkpoint
        self._task = ArithmeticTask(config.task)
        max_tokens = 2 * self._task.max_digits + 5  # the sum's columns twice, \\boxed{, }, the end
        sampling = replace(config.sampling, max_new_tokens=max_tokens)
        self._config = replace(config, sampling=sampling)
        self._sampler = HFSampler(policy, 1024, checkpoint)
        self._reader = AnswerReader(policy.tokenizer, config.task.answer_rule)
        self._optimizer = torch.optim.AdamW(
            policy.model.parameters(),
            lr=config.warm_start.lr,
            betas=(0.9, 0.95),
            weight_decay=0.01,
        )
        self._rng = random.Random(config.warm_start.seed)
        formats = config.warm_start.formats
        self._kinds = cycle([kind for name in formats for kind in ("solve", name)] or ["solve"])

    def run(self) -> None:
        """Train. Raises ValueError if pass@1 is not in the band after warm_start.max_steps."""
        settings = self._config.warm_start
        lr_factor = 1.0
        pass1 = 0.0
        saved = self._snapshot(pass1)
        for step in range(1, settings.max_steps + 1):
            self._checkpoint()
            for group in self._optimizer.param_groups:
                group["lr"] = settings.lr * lr_factor * min(1.0, step / 100)
            start = time.perf_counter()
            loss, tokens = self._step()
            pace = tokens / (time.perf_counter() - start)
            interval = 40 if pass1 < 0.5 * settings.pass1_low else 10
            if step % interval == 0:
                pass1 = self._test()
                if pass1 > settings.pass1_high:
                    pass1 = self._restore(saved)
                    lr_factor /= 2
                elif pass1 >= settings.pass1_low:
                    self._progress(step, loss=loss, pass1=pass1, tokens_per_second=pace)
                    return
                saved = self._snapshot(pass1)
            self._progress(step, loss=loss, pass1=pass1, tokens_per_second=pace)
        raise ValueError(
            f"warm_start.max_steps: expected held-out pass@1 between {settings.pass1_low} and "
            f"{settings.pass1_high} within {settings.max_steps} supervised steps, got {pass1:.3f}"
        )

    def _test(self) -> float:
        """pass@1 at temperature 1, with a standard error below one point in and near the band."""
        pass1 = self._pass1(TEST_SAMPLES // 8)
        # The standard error is 0.022 here, so a model 0.1 below the band is not in it.
        if pass1 < self._config.warm_start.pass1_low - 0.1:
            return pass1
        return self._pass1(TEST_SAMPLES)

    def _pass1(self, samples: int) -> float:
        """pass@1 over this many samples, of different sums if there are so many."""
        held_out_sums = 10 ** (2 * self._task.max_digits) // 10
        sums = min(samples, held_out_sums)
        settings = EvalConfig(prompts=sums, samples=-(-samples // sums), temperature=1.0)
        scores = evaluate(
            self._policy, self._sampler, self._reader, self._task, self._config, settings
        )
        return float(scores["pass1"] or 0.0)

    def _snapshot(self, pass1: float) -> tuple[dict, dict, float]:
        state = (self._policy.model.state_dict(), self._optimizer.state_dict(), pass1)
        return copy.deepcopy(state)

    def _restore(self, snapshot: tuple[dict, dict, float]) -> float:
        """Load weights and optimizer of a snapshot. Returns its pass@1."""
        model_state, optimizer_state, pass1 = snapshot
        self._policy.model.load_state_dict(model_state)
        self._optimizer.load_state_dict(optimizer_state)
        return pass1

    def _step(self) -> tuple[float, int]:
        """One update on the cross-entropy of worked sums: the loss in nats a token, the tokens."""
        policy = self._policy
        batch = self._lessons()
        hidden = policy.hidden(batch.input_ids, batch.position_ids, batch.segments)
        logprobs, _ = linear_logprob(
            hidden, policy.head.weight, batch.targets, row_index=batch.row_index
        )
        loss = -logprobs.mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        self._optimizer.step()
        return loss.item(), len(batch.input_ids)

    def _lessons(self) -> PackedSequences:
        """A batch of sums with worked solutions, some of them wrong. With warm_start.formats every
        second lesson is of another format.
        """
        settings = self._config.warm_start
        tokenizer = self._policy.tokenizer
        device = self._policy.device
        problems = [self._task.train(self._rng.getrandbits(48)) for _ in range(settings.batch_size)]
        lessons = [
            make_lesson(problem, next(self._kinds), self._rng, settings.slip)
            for problem in problems
        ]
        texts = [lesson.completion for lesson in lessons]
        solutions = tokenizer(texts, add_special_tokens=False)["input_ids"]
        completions = []
        for token_ids in solutions:
            tokens = torch.tensor([*token_ids, tokenizer.eos_token_id], device=device)
            zeros = torch.zeros(len(tokens), device=device)
            completions.append(Completion(tokens=tokens, logprobs=zeros, truncated=False))
        prompts = [
            tokenize_prompt(replace(problem, prompt=lesson.prompt), self._config.task, tokenizer)
            for problem, lesson in zip(problems, lessons, strict=True)
        ]
        rollouts = pack_completions(completions, prompts, samples=1)
        count = len(completions)
        [batch] = pack(rollouts, torch.ones(count, device=device), range(count), token_budget=2**62)
        return batch
