"""vLLM engines in processes of their own (`vllm serve`) as the sampler: token ids over HTTP.

The servers run on other GPUs or machines. With several ranks, rank 0 talks to them.

A prompt with all of its samples is one request. Prompt i goes to server i modulo their number, so
that a run repeats. No request is sent twice: a server that restarted meanwhile has other weights.
Each sync gives the weights a name, vLLM's weight version. The sampler asks for this name after
every sample. The name also salts the prefix cache. So samples of other weights cannot pass
unnoticed after a restart, when another run uses a server, or from a cache that was not emptied.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from srt_fast.config import SamplingConfig, VLLMConfig
from srt_fast.model.policy import Policy
from srt_fast.sampling.base import Completion, PendingRollouts, SamplerError
from srt_fast.sampling.http_pool import Request, RequestPool
from srt_fast.sampling.logprob_check import LogprobCheck
from srt_fast.sampling.server_check import ServerCheck
from srt_fast.sampling.server_client import ServerClient
from srt_fast.sampling.vllm_common import POLL_SECONDS, VLLMSamplerBase
from srt_fast.sampling.weight_transfer import FolderTransfer, NCCLTransfer, WeightTransfer

IDLE_TIMEOUT_SECONDS = 10.0
"""Time that a server has to end requests that were given up."""
REQUEST_SETTINGS = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}


class ServerSampler(VLLMSamplerBase):
    """The servers at config.urls. They hold no weights of this run before the first `sync`.

    Args:
        policy: The model to sample from.
        sampling: The run's sampling settings.
        config: The run's vLLM settings.
        folder: The run's folder, where transfer "disk" puts weights. None: the system's temporary
            folder.
        checkpoint: Called while waiting. It may raise to leave early, because a signal arrived.

    Raises:
        SamplerError: A server does not answer. Says how to start it.
        ValueError: A server has another model or other settings. Says how to start it.
    """

    def __init__(
        self,
        policy: Policy,
        sampling: SamplingConfig,
        config: VLLMConfig,
        *,
        folder: Path | None = None,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(policy, sampling, config, checkpoint)
        self._world = policy.world
        self._client = ServerClient(config, checkpoint)
        is_on_cuda = policy.device.type == "cuda"
        with_nccl = config.transfer == "nccl" or (config.transfer == "auto" and is_on_cuda)
        self._transfer = self._make_transfer(with_nccl, folder)
        self._weight_version: str | None = None  # of the weights that every server holds
        self._running: RequestPool | None = None
        server_check = ServerCheck(policy, self._engine_arguments(), with_nccl)
        self._logprob_check = LogprobCheck(
            sampling.temperature,
            self._world.on_main(lambda: server_check.connect(self._client)),
            config.max_logprob_mismatch,
            config.mean_logprob_mismatch,
        )

    def sleep(self) -> None:
        """Frees nothing: the servers have devices of their own."""

    def sync(self, policy: Policy) -> None:
        """See Sampler.sync. The servers forget their prefix caches, which are of older weights."""
        self._weight_version = None
        self._transfer.send(policy)
        self._weight_version = self._world.on_main(self._name_weights)

    def close(self) -> None:
        """Drop what is being sampled, and remove the folder for weights. The servers stay."""
        if self._running:
            self._running.cancel()
        self._transfer.close()

    def _make_transfer(self, with_nccl: bool, folder: Path | None) -> WeightTransfer:
        if with_nccl:
            if importlib.util.find_spec("vllm") is None:
                raise ValueError(
                    "vllm.transfer: 'nccl' needs the package vllm here too, which is not "
                    "installed: pip install 'srt-fast[vllm]', or vllm.transfer='disk'"
                )
            return NCCLTransfer(self._client, self._config.start_timeout)
        if self._config.transfer_dir:
            weights = Path(self._config.transfer_dir)
        elif folder:
            weights = folder / "weights"
        else:
            weights = Path(tempfile.gettempdir()) / "srt-fast-weights"
        return FolderTransfer(self._client, weights.expanduser().resolve())

    def _submit(
        self, prompts: list[list[int]], samples: int, settings: list[dict[str, Any]]
    ) -> PendingRollouts:
        if self._weight_version is None:
            raise SamplerError(
                "vLLM servers: they do not hold this run's weights, the last sync failed"
            )
        pool: RequestPool | None = None
        if self._world.is_main:
            pool = self._send_requests(prompts, settings)

        def answers(interruptible: bool) -> list[list[Completion]]:
            assert pool is not None
            completions = self._client.wait(pool, interruptible=interruptible)
            self._confirm_weight_version()
            return completions

        return PendingRollouts(
            wait=lambda interruptible: self._pack(
                self._world.on_main(lambda: answers(interruptible)), prompts, samples
            ),
            cancel=pool.cancel if pool else lambda: None,
        )

    def _send_requests(
        self, prompts: list[list[int]], settings: list[dict[str, Any]]
    ) -> RequestPool:
        urls = self._client.urls
        requests = []
        for index, (prompt, prompt_settings) in enumerate(zip(prompts, settings, strict=True)):
            body = {"prompt": prompt, "cache_salt": self._weight_version}
            body |= prompt_settings | REQUEST_SETTINGS
            requests.append(Request(urls[index % len(urls)], "/v1/completions", body))
        self._running = RequestPool(requests, read=_completions)
        return self._running

    def _repeat_for_servers(self, prompts: list[list[int]]) -> list[list[int]]:
        count = max(len(prompts), len(self._client.urls))
        return [prompts[index % len(prompts)] for index in range(count)]

    def _name_weights(self) -> str:
        """Give the servers' new weights a name."""
        version = uuid.uuid4().hex
        self._empty_prefix_caches()
        self._client.ask("/update_weight_version", {"new_version": version})
        return version

    def _empty_prefix_caches(self) -> None:
        """Empty the servers' prefix caches.

        A busy server refuses. It may still have to end requests that were given up.
        """
        deadline = time.monotonic() + IDLE_TIMEOUT_SECONDS
        while True:
            answers = self._client.ask("/reset_prefix_cache", {})
            successes = [answer["success"] for answer in answers]
            if all(successes):
                return
            if time.monotonic() > deadline:
                url = self._client.urls[successes.index(False)]
                raise SamplerError(
                    f"vLLM server {url}: expected it to be idle at a sync, got one that others use "
                    "too"
                )
            time.sleep(POLL_SECONDS)

    def _confirm_weight_version(self) -> None:
        answers = self._client.ask("/weight_info")
        for url, answer in zip(self._client.urls, answers, strict=True):
            if answer["weight_version"] != self._weight_version:
                raise SamplerError(
                    f"vLLM server {url}: expected the weights of the last sync, got others: it was "
                    "restarted, or another run uses it"
                )


def _completions(answer: dict[str, Any]) -> list[Completion]:
    """The samples of a prompt. Their JSON takes fifty times the memory of the tensors."""
    completions = []
    for choice in answer["choices"]:
        tokens = choice["token_ids"]
        logprobs = choice["logprobs"]["token_logprobs"]
        reason = choice["finish_reason"]
        if len(tokens) != len(logprobs) or reason not in ("stop", "length"):
            raise ValueError(
                "expected a log-prob a token and finish_reason 'stop' or 'length', got "
                f"{len(tokens)} tokens, {len(logprobs)} log-probs, finish_reason {reason!r}"
            )
        completion = Completion(
            tokens=torch.tensor(tokens, dtype=torch.int64),
            logprobs=torch.tensor(logprobs, dtype=torch.float32),
            truncated=reason == "length",
        )
        completions.append(completion)
    return completions
