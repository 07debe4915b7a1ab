"""The probe: how far a policy agrees with the starting model's votes, and how far away it is.

The probe samples a few held-out prompts every monitor.every steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from srt_fast.collapse.look import Look, Measurement
from srt_fast.config import Config
from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.sampling import Sampler
from srt_fast.sampling.base import SamplingParams, restore_rollouts, rollout_tensors
from srt_fast.sampling.prompts import fitting_prompts
from srt_fast.tasks.base import Task
from srt_fast.types import Rollouts
from srt_kernels import AnswerReader, majority_vote

START_SAMPLES = 16
"""Completions of a prompt that the starting model votes with."""
CONFIDENT_START = 0.3
"""Least share of the starting model's vote on a prompt that can count as dissent."""
CONFIDENT_POLICY = 0.5
"""Least share of the policy's other answer."""

Draw = Literal["votes", "completions", "look"]
"""What is sampled. Each draw of a step has seeds of its own."""


class CollapseProbe:
    """A small set of held-out prompts. With task.test_time there are none: training prompts.

    `begin` asks the starting model. Its votes are the labels that a policy's answers are compared
    with (unless monitor.labels is "gold"). KL(start || policy) is estimated on its completions, so
    the starting model is not needed again.

    Each measurement draws with fresh seeds, which follow from train.seed and the step. A resumed
    run repeats them. The caller's random state does not change.
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
        self._shares: Tensor | None = None  # [P] fp32, the votes' shares
        self._start_rollouts: Rollouts | None = None  # with the starting model's log-probs

    def begin(self) -> None:
        """Ask the starting model, which the policy still is."""
        rollouts = self._sample(START_SAMPLES, 0, "votes")
        keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens)
        vote = majority_vote(keys, rollouts.cu_groups)
        self._labels = vote.majority.cpu()
        self._shares = vote.share.cpu()
        rollouts = self._sample(1, 0, "completions")
        self._start_rollouts = replace(rollouts, logprobs=self._logprobs(rollouts))

    def measure(self, step: int) -> Measurement:
        """Sample the prompts with this step's seeds."""
        assert self._start_rollouts is not None
        rollouts = self._sample(self._config.monitor.samples, step, "look")
        keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens)
        vote = majority_vote(keys, rollouts.cu_groups)
        if self._config.monitor.labels == "gold":
            agrees = self._agreement_with_gold(rollouts)
        else:
            agrees = self._agreement_with_start(keys.cpu())
        log_ratio = self._start_rollouts.logprobs - self._logprobs(self._start_rollouts)
        return Measurement(
            look=self._look(agrees),
            kl=log_ratio.mean().item(),
            dissent=self._dissent(vote.majority.cpu(), vote.share.cpu()),
        )

    def _look(self, agrees: Tensor) -> Look:
        """agrees: bool for each sample."""
        by_prompt = agrees.view(-1, self._config.monitor.samples)
        half = self._config.monitor.samples // 2
        first, second = by_prompt[:, :half], by_prompt[:, half:]
        return Look(
            agreeing=(int(first.sum()), int(second.sum())),
            samples=(first.numel(), second.numel()),
        )

    def _dissent(self, majority: Tensor, share: Tensor) -> float | None:
        assert self._labels is not None and self._shares is not None
        is_clear = (self._shares >= CONFIDENT_START) & (self._labels != 0)
        if not is_clear.any():
            return None
        differs = (majority != self._labels) & (majority != 0) & (share >= CONFIDENT_POLICY)
        return differs[is_clear].float().mean().item()

    def _agreement_with_gold(self, rollouts: Rollouts) -> Tensor:
        samples = self._config.monitor.samples
        answers = self._reader.read(rollouts.tokens, rollouts.cu_seqlens)
        correct = [
            self._task.correct(answer, self._problems[index // samples])
            for index, answer in enumerate(answers)
        ]
        return torch.tensor(correct)

    def _agreement_with_start(self, keys: Tensor) -> Tensor:
        assert self._labels is not None
        labels = self._labels.repeat_interleave(self._config.monitor.samples)
        return (keys == labels) & (keys != 0)

    def _sample(self, samples: int, step: int, draw: Draw) -> Rollouts:
        params = SamplingParams.of_training(self._config.sampling, n=samples)
        rng = random.Random(f"probe/{self._config.train.seed}/{step}/{draw}")
        seeds = [rng.randrange(2**31) for _ in self._prompts]
        return self._sampler.sample(self._prompts, params, seeds=seeds)

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
        return {"labels": self._labels, "shares": self._shares, "start_rollouts": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._labels = state["labels"]
        self._shares = state["shares"]
        tensors = state["start_rollouts"]
        if tensors:
            self._start_rollouts = restore_rollouts(tensors, self._prompts, self._policy.device)
