"""The embedded sampler: transformers' `generate` on the trained model itself, so its weights are always fresh."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from srt_fast.policy import Policy
from srt_fast.rollout import Rollouts
from srt_fast.sampler.base import pack_completions


class HFSampler:
    """Batched sampling with left padding and a KV cache, at most max_sequences at a time.

    `checkpoint` is called before each batch; it may raise to leave early (a signal arrived).
    """

    def __init__(self, policy: Policy, max_sequences: int, checkpoint: Callable[[], None] = lambda: None):
        self._policy, self._max_sequences, self._checkpoint = policy, max_sequences, checkpoint

    def sync(self, policy: Policy) -> None:
        """Nothing to copy: sampler and trainer share the weights."""
        if policy is not self._policy:
            raise ValueError("HFSampler.sync: expected the policy that it was made with, got another one")

    def sleep(self) -> None:
        """Nothing to free: generate gave its cache back."""

    def check(self, policy: Policy, prompts: list[list[int]]) -> None:
        """Nothing to compare: sampler and trainer are one model."""

    def close(self) -> None:
        """Nothing is held."""

    @torch.no_grad()
    def sample(self, prompts: list[list[int]], samples: int, *, temperature: float, max_new_tokens: int, top_p: float = 1.0,
               top_k: int = 0, min_p: float = 0.0) -> Rollouts:
        """As Sampler.sample."""
        recorder = functools.partial(_Recorder, temperature, _warpers(top_p, top_k, min_p))
        jobs = [index for index in range(len(prompts)) for _ in range(samples)]
        jobs.sort(key=lambda index: len(prompts[index]))  # batches of like length need little padding (stable sort)
        results: dict[int, list] = {index: [] for index in range(len(prompts))}
        model = self._policy.model
        was_training = model.training
        model.eval()
        for start in range(0, len(jobs), self._max_sequences):
            self._checkpoint()
            batch = jobs[start:start + self._max_sequences]
            for index, result in zip(batch, self._generate([prompts[index] for index in batch], temperature > 0, max_new_tokens,
                                                           recorder()), strict=True):
                results[index].append(result)
        model.train(was_training)
        completions, logprobs, cut = zip(*(result for index in range(len(prompts)) for result in results[index]), strict=True)
        return pack_completions(list(completions), list(logprobs), list(cut), prompts, samples)

    def _generate(self, prompts: list[list[int]], draw: bool, max_new_tokens: int, recorder: _Recorder) -> list[tuple]:
        """(completion [n], log-probs [n], cut) of each prompt."""
        policy = self._policy
        eos = stop_tokens(policy)
        width = max(map(len, prompts))
        pad = policy.tokenizer.pad_token_id if policy.tokenizer.pad_token_id is not None else eos[0]
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=policy.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
        generation = GenerationConfig(do_sample=draw, temperature=1.0, top_k=0, top_p=1.0,
                                      max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad)
        with policy.autocast(), _without_own_settings(policy.model):
            out = policy.model.generate(input_ids=ids, attention_mask=mask, generation_config=generation,
                                        logits_processor=LogitsProcessorList([recorder]))
        completions = out[:, width:]
        logprobs = recorder.finish(out)
        ended = torch.isin(completions, torch.tensor(eos, device=out.device))
        finished = ended.any(1)
        lengths = torch.where(finished, ended.int().argmax(1) + 1, completions.shape[1]).tolist()
        return [(completions[i, :n], logprobs[i, :n], not done)
                for i, (n, done) in enumerate(zip(lengths, finished.tolist(), strict=True))]


def stop_tokens(policy: Policy) -> list[int]:
    """End-of-sequence ids: the tokenizer's, and those that the model's generation config adds (chat models' end of turn)."""
    extra = getattr(policy.model.generation_config, "eos_token_id", None)
    extra = extra if isinstance(extra, list) else [] if extra is None else [extra]
    return list(dict.fromkeys([policy.tokenizer.eos_token_id, *extra]))


@contextlib.contextmanager
def _without_own_settings(model: PreTrainedModel):
    """generate() fills what a GenerationConfig leaves open from the model's own, where a repetition penalty or min_p
    would bias the ratio."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _warpers(top_p: float, top_k: int, min_p: float) -> list[LogitsProcessor]:
    """Truncations that are on, in vLLM's order."""
    return ([MinPLogitsWarper(min_p)] if min_p else []) + ([TopKLogitsWarper(top_k)] if top_k else []) + (
        [TopPLogitsWarper(top_p)] if top_p < 1 else [])


class _Recorder(LogitsProcessor):
    """Divides logits by the temperature, truncates them and keeps each sampled token's log-prob: [B] a step, never [B, V] of
    all steps."""

    def __init__(self, temperature: float, warpers: list[LogitsProcessor]):
        self._temperature, self._warpers = temperature or 1.0, warpers
        self._scores: Tensor | None = None
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._scores is not None:
            self._take(input_ids[:, -1])
        self._scores = scores.float() / self._temperature
        for warper in self._warpers:
            self._scores = warper(input_ids, self._scores)
        return self._scores

    def _take(self, tokens: Tensor) -> None:
        chosen = self._scores.gather(1, tokens[:, None])[:, 0]
        self._logprobs.append(chosen - self._scores.logsumexp(1))

    def finish(self, sequences: Tensor) -> Tensor:
        """Log-probs [B, steps] of everything sampled."""
        self._take(sequences[:, -1])
        return torch.stack(self._logprobs, 1)
