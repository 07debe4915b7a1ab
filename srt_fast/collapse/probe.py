"""The monitor's held-out prompts: how far a policy still agrees with the starting model's votes, and how far away it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.sampling import Sampler
from srt_fast.sampling.base import SamplingParams
from srt_fast.tasks.base import Task
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.types import Rollouts
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.groups.majority_vote import majority_vote

SEED = 20260102  # not the evaluation's
START_SAMPLES = 16  # completions of a prompt that the starting model votes with


class CollapseProbe:
    """A small set of held-out prompts (with task.test_time, which holds out none, of the training prompts).

    `begin` asks the starting model: its votes are what a policy's answers are scored by (unless monitor.labels is "gold"), and
    its own completions what KL(start || policy) is estimated on, for which the starting model is not needed again. The
    caller's random state is left as it was, and every look draws with the same seed.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        policy: Policy,
        sampler: Sampler,
        reader: AnswerReader,
        check: Callable[[], None],
    ):
        self._config, self._task, self._policy, self._sampler = config, task, policy, sampler
        self._reader, self._check = reader, check
        evaluated, wanted = config.evaluation.prompts, config.monitor.prompts
        problems = task.held_out(evaluated + wanted)
        limit = longest_prompt(policy, config.sampling)
        pairs = [
            (problem, tokenize_prompt(problem, config.task, policy.tokenizer))
            for problem in problems[-wanted:]
        ]
        self._problems = [problem for problem, ids in pairs if len(ids) <= limit]
        self._prompts = [ids for _, ids in pairs if len(ids) <= limit]
        if not self._prompts:
            raise ValueError(
                f"sampling.max_prompt_tokens: expected held-out prompts of at most {limit} tokens for the monitor, "
                f"got {len(pairs)} longer ones"
            )
        self._labels: Tensor | None = None
        self._anchor: Rollouts | None = None

    def begin(self) -> None:
        """Ask the starting model, which the policy still is."""
        rollouts = self._sample(START_SAMPLES)
        keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens)
        self._labels = majority_vote(keys, rollouts.cu_groups).majority.cpu()
        own = self._sample(1)
        self._anchor = Rollouts(
            tokens=own.tokens,
            cu_seqlens=own.cu_seqlens,
            cu_groups=own.cu_groups,
            truncated=own.truncated,
            prompts=own.prompts,
            logprobs=self._logprobs(own),
        )

    def look(self) -> tuple[list[float], float]:
        """Each prompt's score, the part of its completions that agree with the label; and the mean KL(start || policy), nats a
        token."""
        samples = self._config.monitor.samples
        rollouts = self._sample(samples)
        if self._config.monitor.labels == "gold":
            answers = self._reader.read(rollouts.tokens, rollouts.cu_seqlens)
            right = [
                self._task.correct(answer, self._problems[index // samples])
                for index, answer in enumerate(answers)
            ]
            agrees = torch.tensor(right, dtype=torch.float32)
        else:
            keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens).cpu()
            agrees = ((keys == self._labels.repeat_interleave(samples)) & (keys != 0)).float()
        log_ratio = self._anchor.logprobs - self._logprobs(self._anchor)
        return agrees.view(-1, samples).mean(1).tolist(), log_ratio.mean().item()

    def _sample(self, samples: int) -> Rollouts:
        sampling, devices = (
            self._config.sampling,
            [self._policy.device] if self._policy.device.type == "cuda" else [],
        )
        with torch.random.fork_rng(devices):
            torch.manual_seed(SEED)
            return self._sampler.sample(
                self._prompts, SamplingParams.of_training(sampling, n=samples)
            )

    def _logprobs(self, rollouts: Rollouts) -> Tensor:
        everything = torch.arange(len(rollouts.truncated), device=rollouts.tokens.device)
        return rollout_logprobs(
            self._policy,
            rollouts,
            everything,
            temperature=self._config.sampling.temperature,
            token_budget=self._config.train.token_budget,
            check=self._check,
        )

    def state_dict(self) -> dict:
        anchor = (
            None
            if self._anchor is None
            else {
                name: getattr(self._anchor, name)
                for name in ("tokens", "cu_seqlens", "cu_groups", "truncated", "logprobs")
            }
        )
        return {"labels": self._labels, "anchor": anchor}

    def load_state_dict(self, state: dict) -> None:
        self._labels = state["labels"]
        if state["anchor"]:
            tensors = {
                name: tensor.to(self._policy.device) for name, tensor in state["anchor"].items()
            }
            self._anchor = Rollouts(**tensors, prompts=self._prompts)
