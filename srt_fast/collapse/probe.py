"""The probe: how far a policy agrees with the starting model's votes, and how far away it is.

The probe samples a few held-out prompts every monitor.every steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.sampling import Sampler
from srt_fast.sampling.base import SamplingParams, restore_rollouts, rollout_tensors
from srt_fast.sampling.prompts import fitting_prompts
from srt_fast.tasks.base import Task
from srt_fast.types import Rollouts
from srt_kernels import AnswerReader, majority_vote

PROBE_SEED = 20260102
"""Seed of every measurement. The evaluation has another one."""
START_SAMPLES = 16
"""Completions of a prompt that the starting model votes with."""


class CollapseProbe:
    """A small set of held-out prompts. With task.test_time there are none: training prompts.

    `begin` asks the starting model. Its votes are the labels that a policy's answers are compared
    with (unless monitor.labels is "gold"). KL(start || policy) is estimated on its completions, so
    the starting model is not needed again. The caller's random state does not change, and every
    measurement draws with the same seed.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        policy: Policy,
        sampler: Sampler,
        reader: AnswerReader,
        check: Callable[[], None],
    ) -> None:
        self._config = config
        self._task = task
        self._policy = policy
        self._sampler = sampler
        self._reader = reader
        self._check = check
        count = config.monitor.prompts
        problems = task.held_out(config.evaluation.prompts + count)[-count:]
        self._problems, self._prompts = fitting_prompts(problems, config, policy)
        if not self._prompts:
            limit = longest_prompt(policy, config.sampling)
            raise ValueError(
                f"sampling.max_prompt_tokens: expected held-out prompts of at most {limit} tokens "
                f"for the monitor, got {len(problems)} longer ones"
            )
        self._labels: Tensor | None = None  # [P] int64 answer keys of the starting model's votes
        self._start_rollouts: Rollouts | None = None  # with the starting model's log-probs

    def begin(self) -> None:
        """Ask the starting model, which the policy still is."""
        rollouts = self._sample(START_SAMPLES)
        keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens)
        self._labels = majority_vote(keys, rollouts.cu_groups).majority.cpu()
        rollouts = self._sample(1)
        self._start_rollouts = replace(rollouts, logprobs=self._logprobs(rollouts))

    def measure(self) -> tuple[list[float], float]:
        """The score of each prompt, and the mean KL(start || policy) in nats a token.

        A prompt's score is the fraction of its completions that agree with the label.
        """
        assert self._start_rollouts is not None
        rollouts = self._sample(self._config.monitor.samples)
        if self._config.monitor.labels == "gold":
            agrees = self._agreement_with_gold(rollouts)
        else:
            agrees = self._agreement_with_start(rollouts)
        scores = agrees.view(-1, self._config.monitor.samples).mean(1).tolist()
        log_ratio = self._start_rollouts.logprobs - self._logprobs(self._start_rollouts)
        return scores, log_ratio.mean().item()

    def _agreement_with_gold(self, rollouts: Rollouts) -> Tensor:
        samples = self._config.monitor.samples
        answers = self._reader.read(rollouts.tokens, rollouts.cu_seqlens)
        correct = [
            self._task.correct(answer, self._problems[index // samples])
            for index, answer in enumerate(answers)
        ]
        return torch.tensor(correct, dtype=torch.float32)

    def _agreement_with_start(self, rollouts: Rollouts) -> Tensor:
        assert self._labels is not None
        keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens).cpu()
        labels = self._labels.repeat_interleave(self._config.monitor.samples)
        return ((keys == labels) & (keys != 0)).float()

    def _sample(self, samples: int) -> Rollouts:
        params = SamplingParams.of_training(self._config.sampling, n=samples)
        devices = [self._policy.device] if self._policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(PROBE_SEED)
            return self._sampler.sample(self._prompts, params)

    def _logprobs(self, rollouts: Rollouts) -> Tensor:
        return rollout_logprobs(
            self._policy,
            rollouts,
            range(len(rollouts.truncated)),
            temperature=self._config.sampling.temperature,
            token_budget=self._config.train.token_budget,
            check=self._check,
        )

    def state_dict(self) -> dict[str, Any]:
        rollouts = self._start_rollouts
        tensors = None if rollouts is None else rollout_tensors(rollouts)
        return {"labels": self._labels, "start_rollouts": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._labels = state["labels"]
        tensors = state["start_rollouts"]
        if tensors:
            self._start_rollouts = restore_rollouts(tensors, self._prompts, self._policy.device)
