"""Prompts and rollouts, step after step.

Prepares the next batch while the current one trains, or samples those of an offline round ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from srt_fast.config import Config
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.sampling.base import (
    PendingRollouts,
    Sampler,
    SamplerError,
    SamplingParams,
    restore_rollouts,
    rollout_tensors,
)
from srt_fast.sampling.prompts import fitting_prompts
from srt_fast.sampling.ranks import RankSampler
from srt_fast.sampling.vllm_common import VLLMSamplerBase
from srt_fast.tasks.stream import PromptStream
from srt_fast.types import Problem, Prompts, Rollouts


class BatchPrefetcher:
    """Gives each step its prompts and rollouts.

    `prefetch` starts a thread that prepares the next prompts. With vllm.one_step_off, the engine
    also begins to sample the next batch, with the weights that it has at that call. `wait` returns
    when the engine is idle and can take new weights.

    Prefetching changes neither the order of the prompts nor the seeds: `state_dict` is that of a
    run that prefetches nothing.

    when_sampled: called with the rollouts of each batch. Returns those that the step gets.
    """

    def __init__(
        self,
        config: Config,
        stream: PromptStream,
        policy: Policy,
        sampler: Sampler,
        when_sampled: Callable[[Rollouts], Rollouts] = lambda rollouts: rollouts,
    ) -> None:
        self._config = config
        self._stream = stream
        self._policy = policy
        self._sampler = sampler
        self._when_sampled = when_sampled
        self._params = SamplingParams.of_training(config.sampling)
        self.max_prompt_tokens = longest_prompt(policy, config.sampling)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._prompts: Future[Prompts] | None = None  # the next ones, being prepared
        self._batches: deque[tuple[Prompts, Rollouts]] = deque()  # the next ones
        # The next one, being sampled.
        self._pending: tuple[Prompts, PendingRollouts] | None = None

    def next_batch(self, ahead: int = 1) -> tuple[Prompts, Rollouts]:
        """A step's prompts and their rollouts.

        If none is ready, samples as many batches as `ahead` says. The next calls give the others.
        """
        self.wait()
        if not self._batches:
            for _ in range(ahead):
                prompts = self._next_prompts()
                rollouts = self._sampler.sample(prompts.token_ids, self._params)
                self._batches.append((prompts, self._when_sampled(rollouts)))
        return self._batches.popleft()

    def sample_again(self, prompts: Prompts) -> Rollouts:
        """More rollouts of prompts that `next_batch` gave, before `prefetch`."""
        return self._when_sampled(self._sampler.sample(prompts.token_ids, self._params))

    def prefetch(self) -> None:
        """Start to prepare the batch after the last one of `next_batch`, if it is not ready."""
        if self._batches:
            return
        if self._config.vllm.one_step_off:
            # The configuration checks that the engine is vLLM.
            assert isinstance(self._sampler, VLLMSamplerBase | RankSampler)
            prompts = self._next_prompts()
            self._pending = prompts, self._sampler.start(prompts.token_ids, self._params)
        self._prompts = self._executor.submit(self._prepare_prompts)

    def wait(self) -> None:
        """Wait for rollouts that are being sampled.

        If the engine fails, their prompts become the next ones again.
        """
        if self._pending is None:
            return
        prompts, pending = self._pending
        try:
            rollouts = pending.result()
        except SamplerError:
            self._restart_at(prompts)
            raise
        self._batches.append((prompts, self._when_sampled(rollouts)))
        self._pending = None

    def discard(self) -> None:
        """Drop rollouts that are ready. Their prompts become the next ones again.

        Call it before the sampler takes weights that the rollouts must come from.
        """
        self.wait()
        if self._batches:
            prompts, _ = self._batches[0]
            self._restart_at(prompts)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to give the same batches.

        "prompts": the place of the next ones in the stream. "rollouts": the tensors of each batch
        that is ready.
        """
        self.wait()
        if self._batches:
            position = self._batches[0][0].position
        elif self._prompts:
            position = self._prompts.result().position
        else:
            position = self._stream.state_dict()
        rollouts = [rollout_tensors(rollouts) for _, rollouts in self._batches]
        return {"prompts": position, "rollouts": rollouts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Drop what is being prepared, and continue from `state`."""
        if self._pending:
            _, pending = self._pending
            pending.cancel()
        if self._prompts:
            self._prompts.result()
        self._pending = None
        self._prompts = None
        self._batches.clear()
        self._stream.load_state_dict(state["prompts"])
        for tensors in state["rollouts"] or ():  # None in checkpoints of earlier versions
            prompts = self._next_prompts()
            rollouts = restore_rollouts(tensors, prompts.token_ids, self._policy.device)
            self._batches.append((prompts, rollouts))

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(cancel_futures=True)

    def _restart_at(self, prompts: Prompts) -> None:
        self.load_state_dict({"prompts": prompts.position, "rollouts": []})

    def _next_prompts(self) -> Prompts:
        future = self._prompts
        self._prompts = None
        return future.result() if future else self._prepare_prompts()

    def _prepare_prompts(self) -> Prompts:
        """The stream's next prompts. Drops, replaces and counts prompts that are too long.

        Raises ValueError if all of many prompts are too long.
        """
        count = self._config.train.prompts_per_step
        position = self._stream.state_dict()
        problems: list[Problem] = []
        token_ids: list[list[int]] = []
        dropped = 0
        while len(problems) < count:
            candidates = self._stream.next(count - len(problems))
            fitting, fitting_ids = fitting_prompts(candidates, self._config, self._policy)
            problems += fitting
            token_ids += fitting_ids
            dropped += len(candidates) - len(fitting)
            if dropped > 20 * count and not problems:
                raise ValueError(
                    "sampling.max_prompt_tokens: expected prompts of at most "
                    f"{self.max_prompt_tokens} tokens, got {dropped} longer ones in a row"
                )
        return Prompts(problems=problems, token_ids=token_ids, dropped=dropped, position=position)
