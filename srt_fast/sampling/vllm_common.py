"""What the samplers with an engine of their own share: requests checked and seeded, and the check against the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from srt_fast.config import SamplingConfig, VLLMConfig
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.sampling.base import PendingRollouts, SamplingParams
from srt_fast.sampling.hf import stop_tokens
from srt_fast.sampling.logprob_check import SEED, LogprobCheck, LogprobMismatch
from srt_fast.types import Rollouts

POLL = (
    0.2  # seconds between looks at signals and deadlines; results and failures are noticed at once
)


class VLLMSamplerBase:
    """The part of a Sampler that is the same wherever vLLM runs. A subclass says how to `_begin` and makes `_gap`."""

    _gap: LogprobCheck

    def __init__(
        self,
        policy: Policy,
        sampling: SamplingConfig,
        config: VLLMConfig,
        checkpoint: Callable[[], None],
    ):
        self._policy, self._sampling, self._config, self._checkpoint = (
            policy,
            sampling,
            config,
            checkpoint,
        )
        self._stop_tokens, self._max_prompt = stop_tokens(policy), longest_prompt(policy, sampling)

    def sample(self, prompts: list[list[int]], params: SamplingParams) -> Rollouts:
        """As Sampler.sample. ValueError for a prompt or a length that the engine was not made for."""
        return self.start(prompts, params).result(interruptible=True)

    def start(self, prompts: list[list[int]], params: SamplingParams) -> PendingRollouts:
        """Begin to sample, with the weights of the last sync."""
        if 0 < params.temperature < 0.01:
            raise ValueError(
                f"temperature: expected 0 (greedy) or at least 0.01, which vLLM takes for less, got {params.temperature}"
            )
        if params.max_tokens > self._sampling.max_new_tokens:
            raise ValueError(
                f"max_tokens: expected at most {self._sampling.max_new_tokens}, which the engine was made for, "
                f"got {params.max_tokens}"
            )
        longest = max(map(len, prompts))
        if longest > self._max_prompt:
            raise ValueError(
                f"prompts: expected at most {self._max_prompt} tokens, got one of {longest}"
            )
        # One seed a prompt (vLLM adds the sample's number), from torch's generator: runs repeat and resume.
        seeds = torch.randint(2**31, (len(prompts),)).tolist()
        n = params.n if params.temperature > 0 else 1  # vLLM refuses several greedy completions
        settings = asdict(params) | {"n": n, "stop_token_ids": self._stop_tokens, "logprobs": 0}
        return self._begin(prompts, params.n, [settings | {"seed": seed} for seed in seeds])

    def check(self, policy: Policy, prompts: list[list[int]]) -> LogprobMismatch:
        """As Sampler.check, on the same completions' seeds at every call. Leaves the random state as it was."""
        with torch.random.fork_rng([]):
            torch.manual_seed(SEED)
            # Without truncation: the trainer scores with the whole vocabulary.
            params = SamplingParams(
                temperature=self._sampling.temperature,
                max_tokens=min(self._config.check_tokens, self._sampling.max_new_tokens),
            )
            pending = self.start(self._probes(prompts[: self._config.check_prompts]), params)
            return self._gap(
                policy, pending.result()
            )  # still with the check's generator, which a sampler may put back

    def _arguments(self) -> dict[str, Any]:
        """vLLM's arguments that this run needs, wherever the engine runs."""
        policy, longest = self._policy, self._max_prompt + self._sampling.max_new_tokens
        on_cpu = policy.device.type == "cpu"
        cache = self._config.kv_cache_gib or (1.0 if on_cpu else None)
        arguments = {
            "dtype": str(policy.compute_dtype).removeprefix("torch."),
            "max_model_len": longest,
            "max_num_seqs": self._sampling.max_sequences,
            "kv_cache_memory_bytes": cache and int(cache * 2**30),
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "skip_tokenizer_init": True,
            "trust_remote_code": policy.trust_remote_code,
        }
        if on_cpu:  # vLLM's CPU runner fails on a seeded request whose prompt it reads in pieces
            arguments |= {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(8192, longest),
            }
        return arguments

    def _probes(self, prompts: list[list[int]]) -> list[list[int]]:
        return prompts

    def _begin(
        self, prompts: list[list[int]], samples: int, params: list[dict[str, Any]]
    ) -> PendingRollouts:
        """Send a request for each prompt, with vLLM's sampling parameters."""
        raise NotImplementedError
