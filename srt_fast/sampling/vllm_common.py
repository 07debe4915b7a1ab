"""What the two vLLM samplers share: validation and seeds of requests, and the log-prob check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from srt_fast.config import SamplingConfig, VLLMConfig
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.sampling.base import (
    Completion,
    LogprobMismatch,
    PendingRollouts,
    SamplingParams,
    draw_seeds,
    pack_completions,
    stop_tokens,
)
from srt_fast.sampling.logprob_check import CHECK_SEED, LogprobCheck
from srt_fast.types import Rollouts

POLL_SECONDS = 0.2
"""Time between two looks at signals and time limits. Results and failures are noticed at once."""
MIN_TEMPERATURE = 0.01
"""vLLM samples with this temperature if it is asked for a lower one above 0."""


class VLLMSamplerBase:
    """The part of a Sampler that does not depend on where vLLM runs.

    A subclass implements `_submit`, `sleep`, `sync` and `close`, and sets `_logprob_check`.
    """

    _logprob_check: LogprobCheck

    def __init__(
        self,
        policy: Policy,
        sampling: SamplingConfig,
        config: VLLMConfig,
        checkpoint: Callable[[], None],
    ) -> None:
        self._policy = policy
        self._sampling = sampling
        self._config = config
        self._checkpoint = checkpoint
        self._stop_tokens = stop_tokens(policy)
        self._max_prompt_tokens = longest_prompt(policy, sampling)

    def sleep(self) -> None:
        """See Sampler.sleep."""
        raise NotImplementedError

    def sync(self, policy: Policy) -> None:
        """See Sampler.sync."""
        raise NotImplementedError

    def close(self) -> None:
        """See Sampler.close."""
        raise NotImplementedError

    def sample(
        self, prompts: list[list[int]], params: SamplingParams, *, seeds: list[int] | None = None
    ) -> Rollouts:
        """See Sampler.sample.

        Raises ValueError for a prompt, length or temperature that the engine does not support.
        """
        return self.start(prompts, params, seeds=seeds).result(interruptible=True)

    def start(
        self, prompts: list[list[int]], params: SamplingParams, *, seeds: list[int] | None = None
    ) -> PendingRollouts:
        """Begin to sample with the weights of the last sync. Raises ValueError as `sample` does."""
        self._validate(prompts, params)
        # vLLM adds the index of the sample to the prompt's seed.
        prompt_seeds = draw_seeds(len(prompts)) if seeds is None else seeds
        settings = asdict(params) | {"stop_token_ids": self._stop_tokens, "logprobs": 0}
        if params.temperature == 0:
            settings["n"] = 1  # vLLM refuses several greedy completions
        return self._submit(prompts, params.n, [settings | {"seed": seed} for seed in prompt_seeds])

    def check(self, policy: Policy, prompts: list[list[int]]) -> LogprobMismatch:
        """See Sampler.check."""
        return self.compare(policy, self.check_rollouts(prompts))

    def check_rollouts(self, prompts: list[list[int]]) -> Rollouts:
        """The rollouts of a check. Every call uses the same seeds and restores the random state."""
        # Without truncation: the trainer scores with the whole vocabulary.
        params = SamplingParams(
            temperature=self._sampling.temperature,
            max_tokens=min(self._config.check_tokens, self._sampling.max_new_tokens),
        )
        prompts = self._repeat_for_servers(prompts[: self._config.check_prompts])
        with torch.random.fork_rng([]):
            torch.manual_seed(CHECK_SEED)
            # `result` stays inside: VLLMSampler's sets the generator to its state at `start`.
            return self.start(prompts, params).result()

    def compare(self, policy: Policy, rollouts: Rollouts) -> LogprobMismatch:
        """Compare the log-probs of a check's rollouts with the policy's."""
        return self._logprob_check(policy, rollouts)

    def _validate(self, prompts: list[list[int]], params: SamplingParams) -> None:
        if 0 < params.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"temperature: expected 0 (greedy) or at least {MIN_TEMPERATURE:g}, which vLLM "
                f"takes for less, got {params.temperature}"
            )
        if params.max_tokens > self._sampling.max_new_tokens:
            raise ValueError(
                f"max_tokens: expected at most {self._sampling.max_new_tokens}, which the engine "
                f"was made for, got {params.max_tokens}"
            )
        longest = max(len(prompt) for prompt in prompts)
        if longest > self._max_prompt_tokens:
            raise ValueError(
                f"prompts: expected at most {self._max_prompt_tokens} tokens, got one of {longest}"
            )

    def _engine_arguments(self) -> dict[str, Any]:
        """vLLM's arguments that this run needs, wherever the engine runs."""
        policy = self._policy
        is_on_cpu = policy.device.type == "cpu"
        max_model_len = self._max_prompt_tokens + self._sampling.max_new_tokens
        cache_gib = self._config.kv_cache_gib or (1.0 if is_on_cpu else None)
        arguments = {
            "dtype": str(policy.compute_dtype).removeprefix("torch."),
            "max_model_len": max_model_len,
            "max_num_seqs": self._sampling.max_sequences,
            "kv_cache_memory_bytes": cache_gib and int(cache_gib * 2**30),
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "skip_tokenizer_init": True,
            "trust_remote_code": policy.trust_remote_code,
        }
        if is_on_cpu:
            # vLLM's CPU runner fails on a seeded request whose prompt it reads in chunks.
            arguments["enable_chunked_prefill"] = False
            arguments["max_num_batched_tokens"] = max(8192, max_model_len)
        return arguments

    def _repeat_for_servers(self, prompts: list[list[int]]) -> list[list[int]]:
        """The prompts of a check, repeated until each server has one."""
        return prompts

    def _submit(
        self, prompts: list[list[int]], samples: int, settings: list[dict[str, Any]]
    ) -> PendingRollouts:
        """Begin to sample. settings: vLLM's sampling parameters for each prompt.

        The rollouts have `samples` completions of each prompt.
        """
        raise NotImplementedError

    def _pack(
        self, groups: list[list[Completion]], prompts: list[list[int]], samples: int
    ) -> Rollouts:
        """Pack the completions of each prompt. Repeats a greedy completion `samples` times."""
        completions = []
        for group in groups:
            completions += group * (samples // len(group))
        return pack_completions(completions, prompts, samples=samples, device=self._policy.device)
