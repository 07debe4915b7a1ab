"""From a step's rollouts to their rewards: answers, vote, the reward function, resampling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.model.policy import Policy
from srt_fast.rewards import RewardFunction, make_reward_function
from srt_fast.rewards.base import GoldAnswers, answer_keys, find_requirement, voted_groups
from srt_fast.rewards.episodes import Episodes
from srt_fast.rewards.inputs import RewardInputs
from srt_fast.rewards.joining import join_rounds, join_turns, prompts_kept
from srt_fast.rewards.turns import EpisodeFunction, agreement, is_about_task, turns_of
from srt_fast.rewards.weighting import cap_easy, draw_hard, head_tail
from srt_fast.sampling import Sampler
from srt_fast.sampling.base import SamplingParams
from srt_fast.tasks.base import Task
from srt_fast.transfer import fetch, send
from srt_fast.types import (
    Batch,
    Groups,
    Layout,
    PlayedTurn,
    Problem,
    Prompts,
    Reward,
    Rollouts,
)
from srt_fast.utilization.meter import StepMeter
from srt_kernels import AnswerReader, majority_vote


class RewardPipeline:
    """Makes the rewards of a run.

    `function` is the reward function. It may change between steps (monitor.action "freeze").
    meter: gets the sampling of later turns. None: nothing is measured.
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
        meter: StepMeter | None = None,
    ) -> None:
        self._config = config
        self._task = task
        self._reader = reader
        self._inputs = inputs
        self._episodes = Episodes(config, policy, sampler, reader, meter)
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
        return bool(prompts_kept(batch).sum() < self._config.train.prompts_per_step)

    def vote(self, prompts: Prompts, rollouts: Rollouts) -> Groups:
        """The majority vote of each group, and what the reward function requires beside it.

        Without requirements there is no host sync. Gold answers take one, and so does a teacher
        that is asked about some of the prompts.
        """
        settings = self._config.reward
        keys = answer_keys(self._reader, rollouts, settings)
        vote = majority_vote(keys, rollouts.cu_groups, share_over=settings.share_over)
        inputs = self._inputs.gather(self.function.requires, prompts, rollouts, keys)
        if find_requirement(self.function, GoldAnswers):
            inputs["correct"] = self.correct(rollouts, prompts.problems)
        return voted_groups(rollouts, keys, vote, **inputs)

    def ask(self, prompts: Prompts, rollouts: Rollouts, groups: Groups) -> list[PlayedTurn]:
        """The turns after the first, if the reward function declares any.

        Each one samples. Two host syncs a turn, and one more for gold answers.
        """
        turns = turns_of(self.function)[1:]
        if not turns:
            return []
        is_gold_required = find_requirement(self.function, GoldAnswers) is not None
        before = self._episodes.begin(prompts, rollouts, groups)
        episode = [groups]
        later = []
        for number, turn in enumerate(turns):
            params = SamplingParams.of_training(self._config.sampling, n=turn.samples)
            agrees = agreement(episode, len(episode) - 1) if turn.ask == "balanced" else None
            before = self._episodes.ask(turn, before, agrees, params)
            is_answer = turn.reply == "answer" and is_about_task(turns, number)
            if is_gold_required and is_answer:
                problems = [conversation.problem for conversation in before.conversations]
                correct = self.correct(before.rollouts, problems)
                before = replace(before, groups=replace(before.groups, correct=correct))
            episode.append(before.groups)
            later.append(before)
        return later

    def reward(
        self,
        batch: Batch | None,
        prompts: Prompts,
        rollouts: Rollouts,
        groups: Groups,
        later: Sequence[PlayedTurn] = (),
    ) -> Batch:
        """The rewards of these rollouts, joined to the step's earlier ones (`batch`).

        later: the turns after the first. No more than train.prompts_per_step prompts are kept,
        and those of repeat_hard. Raises ValueError if the reward function does not return one
        Reward for each turn.
        """
        rewards = self._rewards([groups, *(turn.groups for turn in later)])
        if self._config.reward.truncated == "mask":
            all_rollouts = [rollouts, *(turn.rollouts for turn in later)]
            rewards = [
                replace(reward, keep=reward.keep & ~played.truncated)
                for reward, played in zip(rewards, all_rollouts, strict=True)
            ]
        reward, *later_rewards = rewards
        if power := self._config.curriculum.head_tail:
            reward = head_tail(reward, groups, power)
        if cap := self._config.curriculum.easy_cap:
            reward = cap_easy(reward, groups, cap)
        new = Batch(
            prompts=prompts,
            rollouts=rollouts,
            groups=groups,
            reward=reward,
            rounds=0 if prompts.are_repeated else 1,
            later=list(later),
            later_rewards=later_rewards,
        )
        if batch is None:
            return new
        repeated = len(prompts.problems) if prompts.are_repeated else 0
        return join_rounds(batch, new, self._config.train.prompts_per_step + repeated)

    def hard_prompts(self, batch: Batch) -> Prompts | None:
        """The step's prompts that are sampled a second time. None if there are none.

        One host sync with curriculum.repeat_hard.
        """
        fraction = self._config.curriculum.repeat_hard
        if not fraction:
            return None
        [shares] = fetch(batch.groups.vote.share.where(prompts_kept(batch), -1.0))
        places = draw_hard(shares, fraction)
        if not places:
            return None
        return Prompts(
            problems=[batch.prompts.problems[place] for place in places],
            token_ids=[batch.prompts.token_ids[place] for place in places],
            dropped=0,
            position=batch.prompts.position,
            are_repeated=True,
        )

    def join_turns(self, batch: Batch) -> tuple[Rollouts, Reward]:
        """What trains: the rollouts and rewards of all turns."""
        return join_turns(batch, self._config.train.turn_weights)

    def end_step(self, step: int) -> None:
        """Let the EMA teacher follow the policy after the step's update."""
        self._inputs.end_step(self.function.requires, step)

    def _rewards(self, episode: list[Groups]) -> list[Reward]:
        """One Reward for each turn."""
        if len(episode) == 1:
            return [self.function(episode[0])]
        rewards = list(cast(EpisodeFunction, self.function)(episode))
        expected = [len(groups.keys) for groups in episode]
        counts = [len(reward.rewards) for reward in rewards]
        if counts != expected:
            raise ValueError(
                f"reward.kind: expected a Reward for each turn, of {expected} rollouts, "
                f"got {counts}"
            )
        return rewards

    def correct(self, rollouts: Rollouts, problems: list[Problem]) -> Tensor:
        """[R] bool: which answers agree with gold. problems: of each prompt of the rollouts."""
        if not problems:
            return torch.zeros_like(rollouts.truncated)
        tokens, truncated = fetch(rollouts.tokens, rollouts.truncated)
        answers = self.answers(tokens, truncated, rollouts.layout, range(len(problems)))
        [correct] = send([self.compare_with_gold(problems, answers)], rollouts.tokens.device)
        return correct

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
