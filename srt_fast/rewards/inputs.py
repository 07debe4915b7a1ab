"""What reward designs ask for beside the vote (reward.base.REQUIREMENTS): gold, labels, a teacher, statistics, verdicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.files import read_rows
from srt_fast.model.logprobs import rollout_statistics
from srt_fast.model.policy import Policy
from srt_fast.rewards import RewardFunction
from srt_fast.rewards.self_verification import judge
from srt_fast.rewards.teacher import Teacher, decay_at
from srt_fast.sampling import Sampler
from srt_fast.tasks.base import Task
from srt_fast.types import Prompts, Rollouts
from srt_kernels.answers.extract import answer_key
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.groups.majority_vote import majority_vote


class RewardInputs:
    """Gathers it for a step's rollouts. What has to be remembered is here: the labels voted so far and the teacher's weights.

    start: the starting model, where "start" is needed; trailing: a copy of the policy that is to become its moving average,
    where "teacher" is.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        sampler: Sampler,
        reader: AnswerReader,
        check: Callable[[], None],
        *,
        start: Policy | None = None,
        trailing: Policy | None = None,
    ):
        self._config, self._policy, self._check = config, policy, check
        self._start, self._trailing = (
            Teacher(config, model, policy, sampler, reader, check) if model else None
            for model in (start, trailing)
        )
        self._labels: dict[
            str, tuple[int, float]
        ] = {}  # problem id -> key and share of the starting model's vote
        self._file: dict[str, int] = {}

    def gather(
        self, design: RewardFunction, prompts: Prompts, rollouts: Rollouts
    ) -> dict[str, Tensor]:
        """The fields of Groups that the design needs, but for gold."""
        found: dict[str, Tensor] = {}
        if "start" in design.requires:
            found["start_labels"], found["start_shares"] = self._start_votes(design, prompts)
        if "teacher" in design.requires:
            found["teacher_keys"], found["cu_teacher"] = self._trailing.answers(
                prompts.token_ids, design.samples
            )
        if design.requires & {"entropies", "certainty"}:
            found["entropies"], found["certainty"] = rollout_statistics(
                self._policy,
                rollouts,
                temperature=self._config.sampling.temperature,
                token_budget=self._config.train.token_budget,
                check=self._check,
            )
        if "judgement" in design.requires:
            found["judged"] = judge(
                design.question, prompts.problems, rollouts, self._policy, self._config, self._check
            )
        return found

    def after_update(self, design: RewardFunction, step: int) -> None:
        """Let the teacher follow the policy."""
        if self._trailing and "teacher" in design.requires:
            self._trailing.follow(
                decay_at(step / self._config.train.steps, design.decay, design.final_decay)
            )

    def _start_votes(self, design: RewardFunction, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """[P] keys and [P] shares. A prompt that has been voted on keeps its label."""
        file, device = getattr(design, "file", None), self._policy.device
        if file:
            self._file = self._file or read_labels(file)
            keys = [self._file.get(problem.prompt, 0) for problem in prompts.problems]
            return torch.tensor(keys, device=device), torch.tensor(
                [float(key != 0) for key in keys], device=device
            )
        new = [
            place
            for place, problem in enumerate(prompts.problems)
            if problem.id not in self._labels
        ]
        if new:
            vote = majority_vote(
                *self._start.answers([prompts.token_ids[place] for place in new], design.samples)
            )
            ids = [prompts.problems[place].id for place in new]
            self._labels |= dict(
                zip(ids, zip(vote.majority.tolist(), vote.share.tolist(), strict=True), strict=True)
            )
        keys, shares = zip(*(self._labels[problem.id] for problem in prompts.problems), strict=True)
        return torch.tensor(keys, device=device), torch.tensor(shares, device=device)

    def state_dict(self) -> dict[str, Any]:
        return {"labels": dict(self._labels), "teacher": self.teacher_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._labels = dict(state["labels"])
        self.put_back(state["teacher"])

    def teacher_state(self) -> dict[str, Tensor] | None:
        """The moving average's weights, where there is one."""
        return self._trailing.state_dict() if self._trailing else None

    def put_back(self, teacher: dict[str, Tensor] | None) -> None:
        """The inverse of teacher_state."""
        if self._trailing:
            self._trailing.load_state_dict(teacher)


def read_labels(file: str) -> dict[str, int]:
    """Keys of a file's labels, by prompt. ValueError where there is no file, or a row without prompt or label."""
    rows = read_rows(file)
    if wrong := [
        number for number, row in enumerate(rows, 1) if not {"prompt", "label"} <= set(row)
    ]:
        raise ValueError(
            f"reward.params: file: expected prompt and label in every row of {file}, got a row without "
            f"(line {wrong[0]})"
        )
    return {str(row["prompt"]): answer_key(str(row["label"])) for row in rows}


def check_labels(file: str, task: Task) -> None:
    """ValueError where a file labels none of a finite task's prompts."""
    labels, size = read_labels(file), task.train_size
    if size and not any(task.train(index).prompt in labels for index in range(size)):
        raise ValueError(
            f"reward.params: file: expected labels of the task's prompts, got none of its {size} among the "
            f"{len(labels)} of {file} (first prompt there: {next(iter(labels), None)!r}, in the task: "
            f"{task.train(0).prompt!r})"
        )
