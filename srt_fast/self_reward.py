"""From a step's rollouts to what they are trained on: answers, vote, the design's rewards, resampling, the second task."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.curriculum import head_tail
from srt_fast.evidence import Evidence
from srt_fast.feedback import Feedback, Groups, Reward, make_design
from srt_fast.policy import Policy
from srt_fast.rollout import Problem, Rollouts, join
from srt_fast.sampler import Sampler
from srt_fast.supply import Prompts, Supply
from srt_fast.tasks.base import Task
from srt_fast.verdict import verification
from srt_kernels.answer_key import AnswerReader
from srt_kernels.majority_vote import majority_vote
from srt_kernels.segments import segment_reduce


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A step's rollouts with their rewards."""

    prompts: Prompts
    rollouts: Rollouts
    reward: Reward
    groups: Groups
    rounds: int  # how often prompts were sampled
    seconds_reward: float  # of the making, sampling by teachers included

    def joined(self, other: Batch) -> Batch:
        """Both, this one first."""
        prompts = replace(self.prompts, problems=self.prompts.problems + other.prompts.problems,
                          token_ids=self.prompts.token_ids + other.prompts.token_ids,
                          dropped=self.prompts.dropped + other.prompts.dropped)
        return Batch(prompts=prompts, rollouts=join([self.rollouts, other.rollouts]), reward=join([self.reward, other.reward]),
                     groups=join([self.groups, other.groups]), rounds=self.rounds + other.rounds,
                     seconds_reward=self.seconds_reward + other.seconds_reward)


class SelfReward:
    """The reward room of a run. `design` may be changed between steps (the monitor's action "freeze")."""

    def __init__(self, config: Config, task: Task, policy: Policy, sampler: Sampler, reader: AnswerReader, evidence: Evidence,
                 design: Feedback):
        self._config, self._task, self._policy, self._sampler = config, task, policy, sampler
        self._reader, self._evidence, self.design = reader, evidence, design

    def batch(self, supply: Supply) -> Batch:
        """The next prompts, sampled and rewarded. With feedback.resample, more of them until the design keeps enough; what it
        does not keep, and keeps beyond that, is masked. All on the device of the tokens; with a design that asks for nothing
        (`needs`) and without resampling nothing here waits for it."""
        wanted = self._config.train.prompts_per_step
        batch = self._one(supply)
        for _ in range(self._config.feedback.resample):
            if self._kept(batch).sum() >= wanted:
                break
            batch = batch.joined(self._one(supply))
        if batch.rounds == 1:
            return batch
        kept = self._kept(batch)
        keep = batch.reward.keep & (kept & (kept.cumsum(0) <= wanted))[batch.groups.group_of()]
        return replace(batch, reward=replace(batch.reward, keep=keep))

    def _one(self, supply: Supply) -> Batch:
        prompts, rollouts = supply.next()
        started = time.perf_counter()
        reward, groups = self._reward(prompts, rollouts)
        return Batch(prompts=prompts, rollouts=rollouts, reward=reward, groups=groups, rounds=1,
                     seconds_reward=time.perf_counter() - started)

    def _kept(self, batch: Batch) -> Tensor:
        """[P] bool: prompts of which something trains."""
        return segment_reduce(batch.reward.keep, "max", batch.groups.cu_groups) > 0

    def _reward(self, prompts: Prompts, rollouts: Rollouts) -> tuple[Reward, Groups]:
        config, cu_groups = self._config.feedback, rollouts.cu_groups
        keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens)
        if config.cut != "vote":
            keys = keys.masked_fill(rollouts.cut, 0)
        vote = majority_vote(keys, cu_groups, share_over=config.share_over)
        found = self._evidence.gather(self.design, prompts, rollouts)
        if "gold" in self.design.needs:
            found["correct"] = self.correct(prompts.problems, self.answers(rollouts, range(len(prompts.problems))), keys.device)
        groups = Groups(keys=keys, cu_groups=cu_groups, cu_seqlens=rollouts.cu_seqlens, logprobs=rollouts.logprobs, vote=vote,
                        **found)
        reward = self.design(groups)
        if config.cut == "mask":
            reward = replace(reward, keep=reward.keep & ~rollouts.cut)
        return head_tail(reward, groups, self._config.curriculum.head_tail), groups

    def with_second_task(self, batch: Batch) -> tuple[Rollouts, Reward]:
        """What trains: the batch's rollouts, and those of the design's second task."""
        if "verification" in self.design.needs:
            extra = verification(self.design, batch.prompts.problems, batch.rollouts, batch.reward.rewards > 0, self._policy,
                                 self._sampler, self._reader, self._config)
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
        self.design = make_design("frozen", {})

    def answers(self, rollouts: Rollouts, groups: Iterable[int]) -> dict[int, list[str | None]]:
        """What the rollouts of these groups answered, as text, on the host; None where a cut one has no vote."""
        bounds, offsets, cut = rollouts.cu_groups.tolist(), rollouts.cu_seqlens, rollouts.cut.tolist()
        votes, found = self._config.feedback.cut == "vote", {}
        for group in groups:
            first, last = bounds[group], bounds[group + 1]
            some = offsets[first:last + 1]
            texts = self._reader.read(rollouts.tokens[some[0]:some[-1]], some - some[0])
            found[group] = [text if votes or not cut[first + i] else None for i, text in enumerate(texts)]
        return found

    def correct(self, problems: list[Problem], answers: dict[int, list[str | None]], device: torch.device) -> Tensor:
        """[R] bool: which answers of all groups agree with gold."""
        found = [self._task.correct(answer, problem) for group, problem in enumerate(problems) for answer in answers[group]]
        return torch.tensor(found, device=device)

    def state_dict(self) -> dict:
        return {"evidence": self._evidence.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        if state:  # a checkpoint of before there was evidence has none
            self._evidence.load_state_dict(state["evidence"])
