"""Samples a probe's prompts and reads the answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TextIO

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.files import append_rows
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.probe.cost import Cost
from srt_fast.rewards.joining import concatenate
from srt_fast.run.interrupts import RunInterrupted
from srt_fast.run.progress import RunProgress
from srt_fast.sampling import Sampler
from srt_fast.sampling.base import SamplingParams, draw_seeds
from srt_fast.sampling.prompts import fitting_prompts
from srt_fast.tasks.base import Task
from srt_fast.tasks.stream import PromptStream
from srt_fast.types import Problem, Rollouts
from srt_kernels import AnswerReader, majority_vote


@dataclass(frozen=True, kw_only=True)
class Samples:
    """K completions of each of P training prompts."""

    problems: list[Problem]
    rollouts: Rollouts  # on the policy's device
    keys: Tensor  # [P, K] int64 answer keys in host memory, 0 for no answer
    answers: list[list[str | None]]  # P lists of K
    correct: list[list[bool] | None]  # P lists of K. None: no gold answer
    prompts_too_long: int
    cost: Cost
    interrupt: RunInterrupted | None  # the signal that ended the sampling early


class _Part(NamedTuple):
    """The samples of some prompts."""

    rollouts: Rollouts
    answers: list[list[str | None]]
    keys: Tensor  # [prompts, K]


class PromptSampler:
    """Samples `samples` completions of a prompt, as a run samples for training, and reads them.

    file: takes a row of each prompt as soon as it is sampled, which `srt-fast vote` reads.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        policy: Policy,
        sampler: Sampler,
        samples: int,
        file: TextIO | None,
    ) -> None:
        self._config = config
        self._task = task
        self._policy = policy
        self._sampler = sampler
        self._params = SamplingParams.of_training(config.sampling, n=samples)
        self._reader = AnswerReader(policy.tokenizer, config.task.answer_rule)
        self._file = file

    def draw(self, prompts: int, progress: RunProgress, check: Callable[[], None]) -> Samples:
        """Sample the first `prompts` training prompts, or all if there are fewer.

        check: raises RunInterrupted if a signal has arrived. What was sampled before stays. Raises
        RunInterrupted if that is nothing, and ValueError if all prompts are too long.
        """
        problems, token_ids, too_long = self._prompts(prompts)
        torch.manual_seed(self._config.train.seed)
        seeds = draw_seeds(len(problems))
        chunk = max(1, self._config.sampling.max_sequences // self._params.n)
        parts: list[_Part] = []
        interrupt = None
        progress.phase("sampling", len(problems), ["vote_share", "tokens_per_second"])
        start = time.perf_counter()
        try:
            for first in range(0, len(problems), chunk):
                check()
                part = slice(first, first + chunk)
                parts.append(self._sample(problems[part], token_ids[part], seeds[part]))
                self._show(progress, parts, time.perf_counter() - start)
        except RunInterrupted as error:
            if not parts:
                raise
            interrupt = error
        seconds = time.perf_counter() - start
        rollouts = concatenate([part.rollouts for part in parts])
        answers = [group for part in parts for group in part.answers]
        problems = problems[: len(answers)]
        return Samples(
            problems=problems,
            rollouts=rollouts,
            keys=torch.cat([part.keys for part in parts]),
            answers=answers,
            correct=[self._correct(*pair) for pair in zip(problems, answers, strict=True)],
            prompts_too_long=too_long,
            cost=Cost(
                completions=len(rollouts.truncated), tokens=len(rollouts.tokens), seconds=seconds
            ),
            interrupt=interrupt,
        )

    def _prompts(self, count: int) -> tuple[list[Problem], list[list[int]], int]:
        """Problems and their token ids, and the number of others, which are too long."""
        size = self._task.train_size
        stream = PromptStream(self._task, self._config.train.seed)
        drawn = stream.next(count if size is None else min(count, size))
        problems, token_ids = fitting_prompts(drawn, self._config, self._policy)
        if not problems:
            limit = longest_prompt(self._policy, self._config.sampling)
            raise ValueError(
                f"sampling.max_prompt_tokens: expected prompts of at most {limit} tokens, got "
                f"{len(drawn)} longer ones"
            )
        return problems, token_ids, len(drawn) - len(problems)

    def _sample(
        self, problems: list[Problem], token_ids: list[list[int]], seeds: list[int]
    ) -> _Part:
        rollouts = self._sampler.sample(token_ids, self._params, seeds=seeds)
        texts = self._reader.read(rollouts.tokens, rollouts.cu_seqlens)
        keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens).cpu()
        truncated = rollouts.truncated.cpu()
        if self._config.reward.truncated != "vote":
            keys = keys.masked_fill(truncated, 0)
            texts = [None if cut else text for text, cut in zip(texts, truncated, strict=True)]
        samples = self._params.n
        self._save(problems, rollouts)
        answers = [texts[first : first + samples] for first in range(0, len(texts), samples)]
        return _Part(rollouts, answers, keys.view(-1, samples))

    def _save(self, problems: list[Problem], rollouts: Rollouts) -> None:
        if self._file is None:
            return
        tokens = rollouts.tokens.cpu()
        completions = [
            self._policy.tokenizer.decode(part, skip_special_tokens=True)
            for part in tokens.split(rollouts.layout.lengths)
        ]
        samples = self._params.n
        rows = [
            {
                "prompt": problem.prompt,
                "completions": completions[place * samples : (place + 1) * samples],
                "gold": problem.gold,
            }
            for place, problem in enumerate(problems)
        ]
        append_rows(self._file, rows)

    def _show(self, progress: RunProgress, parts: list[_Part], seconds: float) -> None:
        keys = torch.cat([part.keys for part in parts])
        offsets = self._params.n * torch.arange(len(keys) + 1, dtype=torch.int32)
        share = majority_vote(keys.flatten(), offsets).share.mean().item()
        tokens = sum(len(part.rollouts.tokens) for part in parts)
        progress.update(len(keys), vote_share=share, tokens_per_second=tokens / seconds)

    def _correct(self, problem: Problem, answers: list[str | None]) -> list[bool] | None:
        """Whether each answer agrees with gold. None: the problem has no gold answer."""
        if not self._task.train_has_gold and problem.gold is None:
            return None
        return [self._task.correct(answer, problem) for answer in answers]
