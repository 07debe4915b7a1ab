"""The embedded sampler. It samples with the trained model itself, so its weights are always fresh.

It has a decoding loop of its own. transformers' `generate` computes every sequence until the
longest one has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

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
from srt_fast.sampling.base import (
    Completion,
    SamplingParams,
    draw_seeds,
    pack_completions,
    stop_tokens,
)
from srt_fast.sampling.kv_cache import make_cache
from srt_fast.types import Rollouts


class _Request(NamedTuple):
    """One completion to make."""

    prompt_index: int
    sample: int  # its place among the prompt's completions
    prompt: list[int]
    seed: int  # the prompt's


class HFSampler:
    """Batched sampling with left padding and a KV cache, at most `max_sequences` at a time.

    A sequence that has ended leaves the batch. `checkpoint` is called before each batch. It may
    raise to leave early, because a signal arrived.
    """

    def __init__(
        self, policy: Policy, max_sequences: int, checkpoint: Callable[[], None] = lambda: None
    ) -> None:
        self._policy = policy
        self._max_sequences = max_sequences
        self._checkpoint = checkpoint

    def sync(self, policy: Policy) -> None:
        """Copies nothing: sampler and trainer share the weights. ValueError for another policy."""
        if policy is not self._policy:
            raise ValueError(
                "HFSampler.sync: expected the policy that it was made with, got another one"
            )

    def sleep(self) -> None:
        """Frees nothing: the KV cache is freed at the end of each `sample`."""

    def check(self, policy: Policy, prompts: list[list[int]]) -> None:
        """Compares nothing: sampler and trainer are one model."""

    def check_rollouts(self, prompts: list[list[int]]) -> None:
        """None: there is nothing to compare."""

    def close(self) -> None:
        """Releases nothing."""

    @torch.no_grad()
    def sample(
        self, prompts: list[list[int]], params: SamplingParams, *, seeds: list[int] | None = None
    ) -> Rollouts:
        """See Sampler.sample."""
        prompt_seeds = draw_seeds(len(prompts)) if seeds is None else seeds
        requests = [
            _Request(index, sample, prompt, seed)
            for index, (prompt, seed) in enumerate(zip(prompts, prompt_seeds, strict=True))
            for sample in range(params.n)
        ]
        # Batches of like length need little padding. The sort is stable.
        requests.sort(key=lambda request: len(request.prompt))
        groups: list[list[Completion]] = [[] for _ in prompts]
        model = self._policy.model
        was_training = model.training
        model.eval()
        with self._policy.gathered_weights():
            for start in range(0, len(requests), self._max_sequences):
                self._checkpoint()
                batch = requests[start : start + self._max_sequences]
                completions = self._complete(batch, params)
                for request, completion in zip(batch, completions, strict=True):
                    groups[request.prompt_index].append(completion)
        model.train(was_training)
        all_completions = [completion for group in groups for completion in group]
        return pack_completions(all_completions, prompts, samples=params.n)

    def _complete(self, requests: list[_Request], params: SamplingParams) -> list[Completion]:
        """One completion of each request. A prompt is computed once for all of its requests."""
        policy = self._policy
        count = len(requests)
        warpers = _warpers(params)
        end_tokens = torch.tensor(stop_tokens(policy), device=policy.device)
        cache = make_cache(policy.model.config)
        input_ids, mask, position_ids, logits = self._prefill(requests, int(end_tokens[0]), cache)
        uniform = _uniform_numbers(requests, params).to(policy.device)
        tokens = input_ids.new_empty(count, params.max_tokens)
        logprobs = torch.empty(count, params.max_tokens, device=policy.device)
        lengths = torch.full((count,), params.max_tokens, device=policy.device)
        finished = torch.zeros(count, dtype=torch.bool, device=policy.device)
        running = torch.arange(count, device=policy.device)  # rows that have not ended
        for step in range(params.max_tokens):
            if step:
                logits = self._next_logits(input_ids, mask, position_ids, cache)
            scores = warpers(
                cast(torch.LongTensor, input_ids), logits / (params.temperature or 1.0)
            )
            if params.temperature:
                next_tokens = _draw(scores, uniform[running, step])
            else:
                next_tokens = scores.argmax(1)
            next_scores = scores.gather(1, next_tokens[:, None])[:, 0]
            tokens[running, step] = next_tokens
            logprobs[running, step] = next_scores - scores.logsumexp(1)
            is_end = torch.isin(next_tokens, end_tokens)
            lengths[running[is_end]] = step + 1
            finished[running[is_end]] = True
            unfinished = (~is_end).nonzero()[:, 0]
            if len(unfinished) == 0:
                break
            if len(unfinished) < len(running):
                cache.batch_select_indices(unfinished)
                running = running[unfinished]
                next_tokens = next_tokens[unfinished]
                mask = mask[unfinished]
                position_ids = position_ids[unfinished]
            input_ids = next_tokens[:, None]
            position_ids = position_ids[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        rows = zip(tokens, logprobs, lengths.tolist(), finished.tolist(), strict=True)
        return [
            Completion(row_tokens[:length], row_logprobs[:length], truncated=not is_finished)
            for row_tokens, row_logprobs, length, is_finished in rows
        ]

    def _prefill(
        self, requests: list[_Request], pad_token: int, cache: DynamicCache
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute each prompt once, and copy its row to all of its requests.

        Returns input_ids, mask and position_ids [B, longest prompt], and the logits [B, V] of the
        first tokens.
        """
        prompts = {request.prompt_index: request.prompt for request in requests}
        input_ids, mask = _pad_left([*prompts.values()], pad_token, self._policy.device)
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self._next_logits(input_ids, mask, position_ids, cache)
        if len(prompts) == len(requests):
            return input_ids, mask, position_ids, logits
        row_of_prompt = {prompt_index: row for row, prompt_index in enumerate(prompts)}
        rows = [row_of_prompt[request.prompt_index] for request in requests]
        copies = torch.tensor(rows, device=self._policy.device)
        cache.batch_select_indices(copies)
        return input_ids[copies], mask[copies], position_ids[copies], logits[copies]

    def _next_logits(
        self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, cache: DynamicCache
    ) -> Tensor:
        """[B, V] fp32 logits of the next token of B sequences. Their keys and values go to `cache`.

        input_ids [B, L], mask [B, padding + all tokens so far], position_ids [B, L].
        """
        with self._policy.autocast():
            output = self._policy.model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=position_ids,
                **{self._policy.cache_argument: cache},
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1].float()


def _pad_left(
    prompts: list[list[int]], pad_token: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids [B, longest prompt] and attention mask [B, longest prompt], 0 at padding."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = [[pad_token] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(input_ids, device=device), torch.tensor(mask, device=device)


def _uniform_numbers(requests: list[_Request], params: SamplingParams) -> Tensor:
    """[B, max_tokens] fp64: the uniform random number of each token. Empty for greedy decoding."""
    if params.temperature == 0:
        return torch.empty(0)
    seeds = {request.prompt_index: request.seed for request in requests}
    numbers = {
        index: torch.rand(
            params.n,
            params.max_tokens,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(seed),
        )
        for index, seed in seeds.items()
    }
    return torch.stack([numbers[request.prompt_index][request.sample] for request in requests])


def _draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """One token [B] of each row of logits [B, V]: the first whose cumulative probability exceeds
    the row's number of `uniform` [B].

    torch.multinomial draws a random number for each token of the vocabulary. On a CPU this takes
    longer than the model's forward pass. Sums are in double precision, so that the rarest tokens
    keep their share.
    """
    cumulative = scores.softmax(1).cumsum(1, dtype=torch.float64)
    # Rounding may leave the last sum a little off 1.
    threshold = uniform[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    return tokens.clamp(max=scores.shape[1] - 1)


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
