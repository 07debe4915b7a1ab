"""A vLLM engine in this process as the sampler.

All calls of the engine run one after the other in one daemon thread. The trainer's thread waits
with a time limit and notices signals meanwhile. It may train while the engine samples (`start`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import torch

from srt_fast.config import SamplingConfig, VLLMConfig
from srt_fast.errors import first_line, native_output_to
from srt_fast.model.policy import Policy
from srt_fast.sampling.base import Completion, PendingRollouts, SamplerError
from srt_fast.sampling.logprob_check import LogprobCheck
from srt_fast.sampling.vllm import VLLMEngine
from srt_fast.sampling.vllm_common import POLL_SECONDS, VLLMSamplerBase
from srt_fast.types import Rollouts

GRACE_SECONDS = 15.0
"""Time that an engine has to drop its requests, to end a call after a signal, or to shut down."""


class VLLMSampler(VLLMSamplerBase):
    """A vLLM engine in this process. It holds none of the policy's weights before the first `sync`.

    Args:
        policy: The model to sample from.
        sampling: The run's sampling settings.
        config: The run's vLLM settings.
        log_file: Where vLLM's log goes, and what C code prints while the engine starts. None: only
            errors, to stderr.
        checkpoint: Called while waiting. It may raise to leave early, because a signal arrived.

    Raises:
        SamplerError: The engine cannot start.
        OSError: The log file cannot be opened.
    """

    def __init__(
        self,
        policy: Policy,
        sampling: SamplingConfig,
        config: VLLMConfig,
        *,
        log_file: Path | None = None,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(policy, sampling, config, checkpoint)
        self._log_file = log_file
        self._can_sleep = config.sleep and policy.device.type == "cuda"
        self._failure: str | None = None  # once the engine has failed or hangs: why
        self._stop_requested = threading.Event()
        self._thread = _EngineThread()
        try:
            # Here and not in the engine's thread: a start that hangs must not keep the terminal.
            with native_output_to(log_file) if log_file else contextlib.nullcontext():
                self._engine = self._call(self._start_engine, "starting", interruptible=True)
        except BaseException:
            self._thread.end()
            raise
        self._logprob_check = LogprobCheck(
            sampling.temperature,
            self._engine.dtype,
            config.max_logprob_mismatch,
            config.mean_logprob_mismatch,
        )

    def sleep(self) -> None:
        """Free the engine's weights and KV cache on a GPU. The next `sync` brings both back."""
        if self._can_sleep and not self._engine.is_asleep:
            self._call(self._engine.sleep, "falling asleep")

    def sync(self, policy: Policy) -> None:
        """See Sampler.sync. The engine empties its prefix cache before it samples."""
        self._call(lambda: self._engine.load_weights(policy), "loading weights")

    def close(self) -> None:
        """Drop what is being sampled and shut the engine down.

        Does not raise. An engine that hangs ends with the process.
        """
        self._stop_requested.set()
        shutdown = self._thread.submit(self._engine.shut_down)
        concurrent.futures.wait([shutdown], GRACE_SECONDS)
        self._thread.end()

    def _submit(
        self, prompts: list[list[int]], samples: int, settings: list[dict[str, Any]]
    ) -> PendingRollouts:
        # vLLM's CPU sampler draws from torch's generator and ignores these draws. `wait` undoes it.
        random_state = torch.get_rng_state()
        submitted_at = time.monotonic()
        future = self._thread.submit(
            lambda: self._engine.generate(prompts, settings, self._stop_requested)
        )

        def wait(interruptible: bool) -> Rollouts:
            groups = self._wait(
                future,
                "sampling",
                "timeout",
                interruptible=interruptible,
                since=lambda: max(submitted_at, self._engine.last_completion_at),
            )
            torch.set_rng_state(random_state)
            completions = [[_completion(output) for output in outputs] for outputs in groups]
            return self._pack(completions, prompts, samples)

        return PendingRollouts(wait=wait, cancel=lambda: self._stop_generating(future))

    def _start_engine(self) -> VLLMEngine:
        arguments = self._engine_arguments()
        arguments["gpu_memory_utilization"] = self._config.gpu_memory_utilization
        if self._policy.world.is_distributed:
            # With tensor parallelism vLLM uses the ranks that torchrun started.
            arguments["distributed_executor_backend"] = "external_launcher"
        return VLLMEngine(
            self._policy,
            arguments | self._config.engine_args,
            can_sleep=self._can_sleep,
            log_file=self._log_file,
        )

    def _call(
        self, function: Callable[[], Any], activity: str, *, interruptible: bool = False
    ) -> Any:
        """The function's result, from the engine's thread."""
        started_at = time.monotonic()
        future = self._thread.submit(function)
        return self._wait(
            future,
            activity,
            "start_timeout",
            interruptible=interruptible,
            since=lambda: started_at,
        )

    def _wait(
        self,
        future: Future[Any],
        activity: str,
        limit: Literal["timeout", "start_timeout"],
        *,
        interruptible: bool,
        since: Callable[[], float],
    ) -> Any:
        """The future's result.

        Raises SamplerError if the engine raises an exception, if it has failed before, or if there
        is no result config's `limit` after `since()`. Only with `interruptible`, an exception of
        `checkpoint` ends the wait at once.
        """
        if self._failure:
            raise SamplerError(self._failure)
        limit_seconds: float = getattr(self._config, limit)
        while not concurrent.futures.wait([future], POLL_SECONDS).done:
            try:
                self._checkpoint()
            except BaseException:
                if interruptible:
                    self._stop_generating(future)
                    raise
                limit_seconds = min(limit_seconds, GRACE_SECONDS)  # a signal while a step ends
            if time.monotonic() - since() > limit_seconds:
                self._failure = (
                    f"vLLM was {activity} and gave nothing for {limit_seconds:g} s (vllm.{limit})"
                    f"{self._log_hint()}"
                )
                raise SamplerError(self._failure)
        if error := future.exception():
            self._failure = self._describe(error, activity)
            raise SamplerError(self._failure) from error
        return future.result()

    def _stop_generating(self, future: Future[Any]) -> None:
        """Make the engine drop its requests, so that it can be used again.

        An engine that does not stop within GRACE_SECONDS counts as failed.
        """
        self._stop_requested.set()
        if concurrent.futures.wait([future], GRACE_SECONDS).done:
            self._stop_requested.clear()
        else:
            self._failure = f"vLLM did not stop within {GRACE_SECONDS:g} s{self._log_hint()}"

    def _describe(self, error: BaseException, activity: str) -> str:
        line = first_line(error).rstrip(".")
        hint = ""
        if isinstance(error, torch.OutOfMemoryError) or "memory" in line.lower():
            hint = (
                " (vllm.gpu_memory_utilization, vllm.kv_cache_gib and sampling.max_sequences say "
                "what it takes)"
            )
        name = type(error).__name__
        return f"vLLM failed while {activity}: {name}: {line}{hint}{self._log_hint()}"

    def _log_hint(self) -> str:
        return f"; its log is {self._log_file}" if self._log_file else ""


class _EngineThread:
    """Runs functions one after the other in a daemon thread.

    A function that hangs does not keep the process alive.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, name="vllm", daemon=True).start()

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Run the function after those that were submitted before."""
        future: Future[Any] = Future()
        self._jobs.put((future, function))
        return future

    def end(self) -> None:
        """End the thread after the functions that were submitted before."""
        self._jobs.put(None)

    def _run(self) -> None:
        while job := self._jobs.get():
            future, function = job
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del job, future, function  # else the last result would live until the next call


def _completion(output: Any) -> Completion:
    """A vllm.CompletionOutput as a Completion, on the CPU."""
    logprobs = output.logprobs.logprobs
    if len(logprobs) != len(output.token_ids):
        raise SamplerError(
            f"vLLM: expected one log-prob a token, got {len(logprobs)} for "
            f"{len(output.token_ids)} tokens"
        )
    return Completion(
        tokens=torch.tensor(output.token_ids, dtype=torch.int64),
        logprobs=torch.tensor(logprobs, dtype=torch.float32),
        truncated=output.finish_reason != "stop",
    )
