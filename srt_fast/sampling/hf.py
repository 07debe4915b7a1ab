"""The embedded sampler: the trained model itself, so its weights are always fresh.

A loop of our own instead of transformers' `generate`, which computes every sequence until the longest has ended.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from srt_fast.model.policy import Policy
from srt_fast.sampling.base import SamplingParams, pack_completions
from srt_fast.types import Rollouts


class HFSampler:
    """Batched sampling with left padding and a KV cache, at most max_sequences at a time; a sequence that has ended leaves
    the batch.

    `checkpoint` is called before each batch; it may raise to leave early (a signal arrived).
    """

    def __init__(
        self, policy: Policy, max_sequences: int, checkpoint: Callable[[], None] = lambda: None
    ):
        self._policy, self._max_sequences, self._checkpoint = policy, max_sequences, checkpoint

    def sync(self, policy: Policy) -> None:
        """Nothing to copy: sampler and trainer share the weights."""
        if policy is not self._policy:
            raise ValueError(
                "HFSampler.sync: expected the policy that it was made with, got another one"
            )

    def sleep(self) -> None:
        """Nothing to free: the cache goes with each call."""

    def check(self, policy: Policy, prompts: list[list[int]]) -> None:
        """Nothing to compare: sampler and trainer are one model."""

    def close(self) -> None:
        """Nothing is held."""

    @torch.no_grad()
    def sample(self, prompts: list[list[int]], params: SamplingParams) -> Rollouts:
        """As Sampler.sample."""
        warpers = _warpers(params)
        jobs = [index for index in range(len(prompts)) for _ in range(params.n)]
        jobs.sort(
            key=lambda index: len(prompts[index])
        )  # batches of like length need little padding (stable sort)
        results: dict[int, list] = {index: [] for index in range(len(prompts))}
        model = self._policy.model
        was_training = model.training
        model.eval()
        for start in range(0, len(jobs), self._max_sequences):
            self._checkpoint()
            batch = jobs[start : start + self._max_sequences]
            found = self._complete(
                [prompts[index] for index in batch], params.temperature, params.max_tokens, warpers
            )
            for index, result in zip(batch, found, strict=True):
                results[index].append(result)
        model.train(was_training)
        completions, logprobs, truncated = zip(
            *(result for index in range(len(prompts)) for result in results[index]), strict=True
        )
        return pack_completions(
            list(completions), list(logprobs), list(truncated), prompts, params.n
        )

    def _complete(
        self, prompts: list[list[int]], temperature: float, limit: int, warpers: LogitsProcessorList
    ) -> list[tuple]:
        """(completion [n], log-probs [n], cut) of each prompt."""
        policy, device = self._policy, self._policy.device
        width, ends = max(map(len, prompts)), torch.tensor(stop_tokens(policy), device=device)
        ids = torch.tensor([[int(ends[0])] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=policy.model.config.get_text_config(decoder=True))
        running = torch.arange(
            len(prompts), device=device
        )  # the row of each sequence that has not ended
        tokens = ids.new_empty(len(prompts), limit)
        logprobs = torch.empty(len(prompts), limit, device=device)
        lengths = torch.full((len(prompts),), limit, device=device)
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        for place in range(limit):
            with policy.autocast():
                logits = policy.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    **{policy.cache_argument: cache},
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
            scores = warpers(ids, logits.float() / (temperature or 1.0))
            chosen = _draw(scores) if temperature else scores.argmax(1)
            tokens[running, place] = chosen
            logprobs[running, place] = scores.gather(1, chosen[:, None])[:, 0] - scores.logsumexp(1)
            ended = torch.isin(chosen, ends)
            lengths[running[ended]], finished[running[ended]] = place + 1, True
            left = (~ended).nonzero()[:, 0]
            if len(left) == 0:
                break
            if len(left) < len(running):
                cache.batch_select_indices(left)
                running, chosen, mask, positions = (
                    t[left] for t in (running, chosen, mask, positions)
                )
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        return [
            (tokens[i, :n], logprobs[i, :n], not done)
            for i, (n, done) in enumerate(zip(lengths.tolist(), finished.tolist(), strict=True))
        ]


def _draw(scores: Tensor) -> Tensor:
    """One token [B] of each row of logits [B, V]: where the cumulative probability passes a random number.

    torch.multinomial draws a random number for each token instead, which takes longer than the model's forward pass on a
    CPU. Sums are in double precision, so that the rarest tokens keep their share.
    """
    passed = scores.softmax(1).cumsum(1, dtype=torch.float64)
    at = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device) * passed[:, -1:]
    return torch.searchsorted(passed, at, right=True)[:, 0].clamp(max=scores.shape[1] - 1)


def stop_tokens(policy: Policy) -> list[int]:
    """End-of-sequence ids: the tokenizer's, and those that the model's generation config adds (chat models' end of turn)."""
    extra = getattr(policy.model.generation_config, "eos_token_id", None)
    extra = extra if isinstance(extra, list) else [] if extra is None else [extra]
    return list(dict.fromkeys([policy.tokenizer.eos_token_id, *extra]))


def _warpers(params: SamplingParams) -> LogitsProcessorList:
    """The truncations of `params`, in vLLM's order."""
    warpers = LogitsProcessorList()
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    return warpers
