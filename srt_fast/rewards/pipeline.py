"""From a step's rollouts to what they are trained on: answers, vote, the design's rewards, resampling, the second task."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.model.policy import Policy
from srt_fast.rewards import RewardFunction, make_reward_function
from srt_fast.rewards.inputs import RewardInputs
from srt_fast.rewards.self_verification import verification
from srt_fast.rewards.weighting import head_tail
from srt_fast.sampling import Sampler
from srt_fast.sampling.prefetch import BatchPrefetcher
from srt_fast.tasks.base import Task
from srt_fast.types import Batch, Groups, Problem, Prompts, Reward, Rollouts, join
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.core.segments import segment_reduce
from srt_kernels.groups.majority_vote import majority_vote


class RewardPipeline:
    """The reward room of a run. `design` may be changed between steps (the monitor's action "freeze")."""

    def __init__(
        self,
        config: Config,
        task: Task,
        policy: Policy,
        sampler: Sampler,
        reader: AnswerReader,
        evidence: RewardInputs,
        design: RewardFunction,
    ):
        self._config, self._task, self._policy, self._sampler = config, task, policy, sampler
        self._reader, self._evidence, self.design = reader, evidence, design

    def batch(self, supply: BatchPrefetcher) -> Batch:
        """The next prompts, sampled and rewarded. With reward.resample, more of them until the design keeps enough; what it
        does not keep, and keeps beyond that, is masked. All on the device of the tokens; with a design that asks for nothing
        (`needs`) and without resampling nothing here waits for it."""
        wanted = self._config.train.prompts_per_step
        batch = self._one(supply)
        for _ in range(self._config.reward.resample):
            if self._kept(batch).sum() >= wanted:
                break
            batch = batch.joined(self._one(supply))
        if batch.rounds == 1:
            return batch
        kept = self._kept(batch)
        keep = batch.reward.keep & (kept & (kept.cumsum(0) <= wanted))[batch.groups.group_of()]
        return replace(batch, reward=replace(batch.reward, keep=keep))

    def _one(self, supply: BatchPrefetcher) -> Batch:
        prompts, rollouts = supply.next_batch()
        started = time.perf_counter()
        reward, groups = self._reward(prompts, rollouts)
        return Batch(
            prompts=prompts,
            rollouts=rollouts,
            reward=reward,
            groups=groups,
            rounds=1,
            seconds_reward=time.perf_counter() - started,
        )

    def _kept(self, batch: Batch) -> Tensor:
        """[P] bool: prompts of which something trains."""
        return segment_reduce(batch.reward.keep, "max", batch.groups.cu_groups) > 0

    def _reward(self, prompts: Prompts, rollouts: Rollouts) -> tuple[Reward, Groups]:
        config, cu_groups = self._config.reward, rollouts.cu_groups
        keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens)
        if config.truncated != "vote":
            keys = keys.masked_fill(rollouts.truncated, 0)
        vote = majority_vote(keys, cu_groups, share_over=config.share_over)
        found = self._evidence.gather(self.design, prompts, rollouts)
        if "gold" in self.design.requires:
            found["correct"] = self.correct(
                prompts.problems, self.answers(rollouts, range(len(prompts.problems))), keys.device
            )
        groups = Groups(
            keys=keys,
            cu_groups=cu_groups,
            cu_seqlens=rollouts.cu_seqlens,
            logprobs=rollouts.logprobs,
            vote=vote,
            **found,
        )
        reward = self.design(groups)
        if config.truncated == "mask":
            reward = replace(reward, keep=reward.keep & ~rollouts.truncated)
        return head_tail(reward, groups, self._config.curriculum.head_tail), groups

    def with_second_task(self, batch: Batch) -> tuple[Rollouts, Reward]:
        """What trains: the batch's rollouts, and those of the design's second task."""
        if "verification" in self.design.requires:
            extra = verification(
                self.design,
                batch.prompts.problems,
                batch.rollouts,
                batch.reward.rewards > 0,
                self._policy,
                self._sampler,
                self._reader,
                self._config,
            )
            if extra:
                reward = batch.reward
                if reward.weights is not None:
                    extra = extra[0], replace(extra[1], weights=torch.ones_like(extra[1].rewards))
                return join([batch.rollouts, extra[0]]), join([reward, extra[1]])
        return batch.rollouts, batch.reward

    def after_update(self, step: int) -> None:
        """Let teachers follow."""
        self._evidence.after_update(self.design, step)

    def teacher_state(self) -> dict | None:
        """The moving-average teacher's weights, where there is one."""
        return self._evidence.teacher_state()

    def put_back(self, teacher: dict | None) -> None:
        """The inverse of teacher_state."""
        self._evidence.put_back(teacher)

    def freeze(self) -> None:
        """From now on the starting model's votes are the labels."""
        self.design = make_reward_function("frozen", {})

    def answers(self, rollouts: Rollouts, groups: Iterable[int]) -> dict[int, list[str | None]]:
        """What the rollouts of these groups answered, as text, on the host; None where a cut one has no vote."""
        bounds, offsets, truncated = (
            rollouts.cu_groups.tolist(),
            rollouts.cu_seqlens,
            rollouts.truncated.tolist(),
        )
        votes, found = self._config.reward.truncated == "vote", {}
        for group in groups:
            first, last = bounds[group], bounds[group + 1]
            some = offsets[first : last + 1]
            texts = self._reader.read(rollouts.tokens[some[0] : some[-1]], some - some[0])
            found[group] = [
                text if votes or not truncated[first + i] else None for i, text in enumerate(texts)
            ]
        return found

    def correct(
        self, problems: list[Problem], answers: dict[int, list[str | None]], device: torch.device
    ) -> Tensor:
        """[R] bool: which answers of all groups agree with gold."""
        found = [
            self._task.correct(answer, problem)
            for group, problem in enumerate(problems)
            for answer in answers[group]
        ]
        return torch.tensor(found, device=device)

    def state_dict(self) -> dict:
        return {"evidence": self._evidence.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        if state:  # a checkpoint of before there was evidence has none
            self._evidence.load_state_dict(state["evidence"])
