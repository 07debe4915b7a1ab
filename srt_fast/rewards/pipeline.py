"""From a step's rollouts to their rewards: answers, vote, the reward function, resampling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.model.policy import Policy
from srt_fast.rewards import RewardFunction, make_reward_function
from srt_fast.rewards.base import GoldAnswers, VerificationTask, find_requirement, group_index
from srt_fast.rewards.inputs import RewardInputs
from srt_fast.rewards.self_verification import sample_verification
from srt_fast.rewards.weighting import head_tail
from srt_fast.sampling import Sampler
from srt_fast.tasks.base import Task
from srt_fast.transfer import fetch, send
from srt_fast.types import Batch, Groups, Layout, Problem, Prompts, Reward, Rollouts
from srt_kernels import AnswerReader, majority_vote
from srt_kernels.core.segments import segment_reduce


class RewardPipeline:
    """Makes the rewards of a run.

    `function` is the reward function. It may change between steps (monitor.action "freeze").
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        policy: Policy,
        sampler: Sampler,
        reader: AnswerReader,
        inputs: RewardInputs,
        function: RewardFunction,
    ) -> None:
        self._config = config
        self._task = task
        self._policy = policy
        self._sampler = sampler
        self._reader = reader
        self._inputs = inputs
        self.function = function

    # ---- the stations of a step ----

    def needs_prompts(self, batch: Batch | None) -> bool:
        """Whether the step samples prompts: at first, and again while reward.resample allows it.

        Synchronises with the device only if `reward.resample > 0`.
        """
        if batch is None:
            return True
        if batch.rounds > self._config.reward.resample:
            return False
        return bool(_prompts_kept(batch).sum() < self._config.train.prompts_per_step)

    def vote(self, prompts: Prompts, rollouts: Rollouts) -> Groups:
        """The majority vote of each group, and what the reward function requires beside it.

        Without requirements there is no host sync. Gold answers take one, and so does a teacher
        that is asked about some of the prompts.
        """
        settings = self._config.reward
        keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens)
        if settings.truncated != "vote":
            keys = keys.masked_fill(rollouts.truncated, 0)
        vote = majority_vote(keys, rollouts.cu_groups, share_over=settings.share_over)
        inputs = self._inputs.gather(self.function.requires, prompts, rollouts, keys)
        if find_requirement(self.function, GoldAnswers):
            tokens, truncated = fetch(rollouts.tokens, rollouts.truncated)
            groups = range(len(prompts.problems))
            answers = self.answers(tokens, truncated, rollouts.layout, groups)
            correct = self.compare_with_gold(prompts.problems, answers)
            [inputs["correct"]] = send([correct], keys.device)
        return Groups(
            keys=keys,
            cu_groups=rollouts.cu_groups,
            cu_seqlens=rollouts.cu_seqlens,
            logprobs=rollouts.logprobs,
            vote=vote,
            **inputs,
        )

    def reward(
        self, batch: Batch | None, prompts: Prompts, rollouts: Rollouts, groups: Groups
    ) -> Batch:
        """The rewards of these rollouts, joined to the step's earlier ones (`batch`)."""
        reward = self.function(groups)
        if self._config.reward.truncated == "mask":
            reward = replace(reward, keep=reward.keep & ~rollouts.truncated)
        if power := self._config.curriculum.head_tail:
            reward = head_tail(reward, groups, power)
        new = Batch(prompts=prompts, rollouts=rollouts, groups=groups, reward=reward, rounds=1)
        return new if batch is None else self._join(batch, new)

    def add_verification(self, batch: Batch) -> tuple[Rollouts, Reward]:
        """What trains: the batch's rollouts, and those of the verification task if there is one."""
        task = find_requirement(self.function, VerificationTask)
        if task is None:
            return batch.rollouts, batch.reward
        verification = sample_verification(
            task,
            problems=batch.prompts.problems,
            rollouts=batch.rollouts,
            agrees=batch.reward.rewards > 0,
            policy=self._policy,
            sampler=self._sampler,
            reader=self._reader,
            config=self._config,
        )
        if verification is None:
            return batch.rollouts, batch.reward
        rollouts, reward = verification
        if batch.reward.weights is not None:
            reward = replace(reward, weights=torch.ones_like(reward.rewards))
        return concatenate([batch.rollouts, rollouts]), concatenate([batch.reward, reward])

    def end_step(self, step: int) -> None:
        """Let the EMA teacher follow the policy after the step's update."""
        self._inputs.end_step(self.function.requires, step)

    def _join(self, batch: Batch, new: Batch) -> Batch:
        """Both batches. Masks what the reward function keeps beyond train.prompts_per_step."""
        prompts = Prompts(
            problems=batch.prompts.problems + new.prompts.problems,
            token_ids=batch.prompts.token_ids + new.prompts.token_ids,
            dropped=batch.prompts.dropped + new.prompts.dropped,
            position=batch.prompts.position,
        )
        joined = Batch(
            prompts=prompts,
            rollouts=concatenate([batch.rollouts, new.rollouts]),
            groups=concatenate([batch.groups, new.groups]),
            reward=concatenate([batch.reward, new.reward]),
            rounds=batch.rounds + new.rounds,
        )
        is_kept = _prompts_kept(joined)
        is_within = is_kept & (is_kept.cumsum(0) <= self._config.train.prompts_per_step)
        keep = joined.reward.keep & is_within[group_index(joined.groups)]
        return replace(joined, reward=replace(joined.reward, keep=keep))

    # ---- answers as texts, on the host ----

    def answers(
        self, tokens: Tensor, truncated: Tensor, layout: Layout, groups: Iterable[int]
    ) -> dict[int, list[str | None]]:
        """The answers of these groups' rollouts. None without an answer.

        tokens [N] int64 and truncated [R] bool of all rollouts, in host memory. With
        reward.truncated "no_answer" or "mask" a truncated rollout has none.
        """
        group_bounds = layout.group_bounds
        all_offsets = torch.tensor(layout.offsets)
        is_truncated = truncated.tolist()
        truncated_vote = self._config.reward.truncated == "vote"
        answers: dict[int, list[str | None]] = {}
        for group in groups:
            first = group_bounds[group]
            last = group_bounds[group + 1]
            offsets = all_offsets[first : last + 1]
            group_tokens = tokens[offsets[0] : offsets[-1]]
            texts = self._reader.read(group_tokens, offsets - offsets[0])
            answers[group] = [
                text if truncated_vote or not is_truncated[first + index] else None
                for index, text in enumerate(texts)
            ]
        return answers

    def compare_with_gold(
        self, problems: list[Problem], answers: dict[int, list[str | None]]
    ) -> Tensor:
        """[R] bool in host memory: which answers of all groups agree with gold."""
        correct = [
            self._task.correct(answer, problem)
            for group, problem in enumerate(problems)
            for answer in answers[group]
        ]
        return torch.tensor(correct)

    # ---- state ----

    def freeze(self) -> None:
        """From now on the starting model's votes are the labels."""
        self.function = make_reward_function("frozen", {})

    def teacher_weights(self) -> dict[str, Tensor] | None:
        """The EMA teacher's weights by name, not copied. None without a teacher."""
        return self._inputs.teacher_weights()

    def state_dict(self) -> dict[str, Any]:
        return self._inputs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inputs.load_state_dict(state)


def _prompts_kept(batch: Batch) -> Tensor:
    """[P] bool: prompts with at least one rollout that trains."""
    return segment_reduce(batch.reward.keep, "max", batch.groups.cu_groups) > 0


def concatenate(parts: list[Any]) -> Any:
    """One object from dataclasses of one type, tensors or lists. None if the first part is None.

    Offsets (fields named cu_...) of a part begin where those of the part before end.
    """
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if not is_dataclass(first) or isinstance(first, type):
        return sum(parts, [])
    values = {}
    for field in fields(first):
        members = [getattr(part, field.name) for part in parts]
        are_offsets = field.name.startswith("cu_") and members[0] is not None
        values[field.name] = _concatenate_offsets(members) if are_offsets else concatenate(members)
    return type(first)(**values)


def _concatenate_offsets(parts: list[Tensor]) -> Tensor:
    offsets = parts[0]
    for part in parts[1:]:
        offsets = torch.cat([offsets, offsets[-1] + part[1:]])
    return offsets
