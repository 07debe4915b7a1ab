"""What reward functions read beside the vote: labels, a teacher's answers, token statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.files import read_rows
from srt_fast.model.logprobs import rollout_statistics
from srt_fast.model.policy import Policy
from srt_fast.rewards.base import (
    EMATeacher,
    PeerVotes,
    Requirement,
    RewardFunction,
    SelfJudgement,
    StartLabels,
    TokenCertainty,
    TokenEntropies,
    find_requirement,
    is_undecided,
)
from srt_fast.rewards.self_verification import judge_rollouts
from srt_fast.rewards.teacher import Teacher, decay_at
from srt_fast.sampling import Sampler
from srt_fast.tasks.base import Task
from srt_fast.transfer import fetch, send
from srt_fast.types import Prompts, Rollouts
from srt_fast.utilization.meter import StepMeter
from srt_kernels import AnswerReader, majority_vote
from srt_kernels.answers.canonical import answer_key

FileLabels = dict[str, tuple[int, float]]
"""Answer key and share of a file's labels, by prompt."""
COLUMNS = (("prompt", "label"), ("group", "majority"))
"""Columns of labels: those of a file made by hand, and those of `srt-fast vote --out`."""


class RewardInputs:
    """Gathers what a reward function requires for a step's rollouts.

    Holds what must be remembered: the labels of the starting model and the teacher's weights.

    check: called between micro-batches on all ranks. stop_sampling: called while a teacher samples,
    on one rank. Both may raise, because a signal arrived.

    start: the starting model. StartLabels needs it, unless the labels come from a file.
    ema: a copy of the policy that becomes its moving average. EMATeacher needs it.
    meter: gets the passes that are made here. None: nothing is measured.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        sampler: Sampler,
        reader: AnswerReader,
        check: Callable[[], None],
        stop_sampling: Callable[[], None],
        *,
        start: Policy | None = None,
        ema: Policy | None = None,
        meter: StepMeter | None = None,
    ) -> None:
        self._config = config
        self._policy = policy
        self._check = check
        self._meter = meter or StepMeter()

        def make_teacher(model: Policy | None) -> Teacher | None:
            if model is None:
                return None
            return Teacher(config, model, policy, sampler, reader, stop_sampling, self._meter)

        self._start_teacher = make_teacher(start)
        self._ema_teacher = make_teacher(ema)
        self._labels: dict[str, tuple[int, float]] = {}  # problem id -> answer key and vote share
        self._files: dict[str, FileLabels] = {}  # those that were read, by their paths

    def gather(
        self,
        requirements: Sequence[Requirement],
        prompts: Prompts,
        rollouts: Rollouts,
        keys: Tensor,
    ) -> dict[str, Tensor]:
        """The fields of Groups that these requirements name. The pipeline adds gold answers.

        keys [R] int64: the answers of the rollouts.
        """
        inputs: dict[str, Tensor] = {}
        needs_statistics = False
        for requirement in requirements:
            if isinstance(requirement, StartLabels):
                labels, shares = self._start_labels(requirement, prompts)
                inputs["start_labels"] = labels
                inputs["start_shares"] = shares
            elif isinstance(requirement, PeerVotes):
                labels, shares = self._peer_votes(requirement, prompts)
                inputs["peer_labels"] = labels
                inputs["peer_shares"] = shares
            elif isinstance(requirement, EMATeacher):
                assert self._ema_teacher is not None
                asked = None
                # In sft a group of equal rewards trains, if they are above 0.
                if requirement.ask == "undecided" and self._config.train.objective != "sft":
                    [is_asked] = fetch(is_undecided(keys, rollouts.cu_groups))
                    asked = is_asked.tolist()
                teacher_keys, cu_teacher = self._ema_teacher.answers(
                    prompts.token_ids, requirement.samples, asked
                )
                inputs["teacher_keys"] = teacher_keys
                inputs["cu_teacher"] = cu_teacher
            elif isinstance(requirement, SelfJudgement):
                inputs["judge_scores"] = judge_rollouts(
                    requirement.question,
                    prompts.problems,
                    rollouts,
                    self._policy,
                    self._config,
                    self._check,
                    self._meter,
                )
            elif isinstance(requirement, TokenEntropies | TokenCertainty):
                needs_statistics = True
        if needs_statistics:
            inputs |= self._statistics(rollouts)
        return inputs

    def _statistics(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Entropies and certainty of all tokens."""
        with self._meter.part("score"):
            entropies, certainty = rollout_statistics(
                self._policy,
                rollouts,
                temperature=self._config.sampling.temperature,
                token_budget=self._config.train.token_budget,
                check=self._check,
            )
        self._meter.count_scoring(rollouts, range(len(rollouts.truncated)))
        return {"entropies": entropies, "certainty": certainty}

    def end_step(self, requirements: Sequence[Requirement], step: int) -> None:
        """Let the EMA teacher follow the policy."""
        for requirement in requirements:
            if isinstance(requirement, EMATeacher) and self._ema_teacher:
                progress = step / self._config.train.steps
                decay = decay_at(progress, requirement.decay, requirement.final_decay)
                self._ema_teacher.follow(decay)

    def _start_labels(self, requirement: StartLabels, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """[P] answer keys and [P] vote shares. A prompt keeps the label of its first vote."""
        if requirement.file:
            labels = self._labels_of_file(requirement.file, prompts)
            labels = [(key, float(key != 0)) for key, _ in labels]
        else:
            self._vote_on_new(requirement, prompts)
            labels = [self._labels[problem.id] for problem in prompts.problems]
        return self._send_labels([labels], (-1,))

    def _peer_votes(self, requirement: PeerVotes, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """[P, K] answer keys and [P, K] vote shares of the peers. 0 where a peer has no vote."""
        columns = [self._labels_of_file(file, prompts) for file in requirement.files]
        rows = zip(*columns, strict=True)
        return self._send_labels(rows, (-1, len(requirement.files)))

    def _labels_of_file(self, file: str, prompts: Prompts) -> list[tuple[int, float]]:
        """[P] answer keys and shares. 0 and 0 for a prompt without a label."""
        if file not in self._files:
            self._files[file] = read_labels(file)
        return [self._files[file].get(problem.prompt, (0, 0.0)) for problem in prompts.problems]

    def _send_labels(
        self, labels: Iterable[Sequence[tuple[int, float]]], shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Answer keys and shares of this shape on the policy's device."""
        pairs = [pair for row in labels for pair in row]
        keys = torch.tensor([key for key, _ in pairs]).view(shape)
        shares = torch.tensor([share for _, share in pairs]).view(shape)
        keys, shares = send([keys, shares], self._policy.device)
        return keys, shares

    def _vote_on_new(self, requirement: StartLabels, prompts: Prompts) -> None:
        """Let the starting model vote on the prompts without a label."""
        new = [
            place
            for place, problem in enumerate(prompts.problems)
            if problem.id not in self._labels
        ]
        if not new:
            return
        assert self._start_teacher is not None
        token_ids = [prompts.token_ids[place] for place in new]
        keys, cu_groups = self._start_teacher.answers(token_ids, requirement.samples)
        vote = majority_vote(keys, cu_groups)
        labels = zip(vote.majority.tolist(), vote.share.tolist(), strict=True)
        for place, label in zip(new, labels, strict=True):
            self._labels[prompts.problems[place].id] = label

    def teacher_weights(self) -> dict[str, Tensor] | None:
        """The EMA teacher's weights by name, not copied. None without a teacher."""
        return self._ema_teacher.weights() if self._ema_teacher else None

    def state_dict(self) -> dict[str, Any]:
        """The labels. The teacher's weights are apart (teacher_weights)."""
        return {"labels": dict(self._labels)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._labels = dict(state["labels"])


def read_labels(file: str) -> FileLabels:
    """A file's labels. A label of null is none. A row without "share" has share 1.

    Raises ValueError for a missing file, a row without prompt or label, or a share that is no
    number from 0 to 1.
    """
    labels: FileLabels = {}
    for number, row in enumerate(read_rows(file), 1):
        columns = next((pair for pair in COLUMNS if set(pair) <= set(row)), None)
        if columns is None:
            raise ValueError(
                f"reward.params: file: expected prompt and label in every row of {file}, "
                f"got a row without (line {number})"
            )
        prompt, label = (row[column] for column in columns)
        share = row.get("share", 1.0)
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(
                f"reward.params: file: expected a share from 0 to 1 in every row of {file}, "
                f"got {share!r} (line {number})"
            )
        key = 0 if label is None else answer_key(str(label))
        labels[str(prompt)] = (key, float(share) if key else 0.0)
    return labels


def label_files(function: RewardFunction) -> tuple[str, ...]:
    """The files that this reward function's labels come from."""
    labels = find_requirement(function, StartLabels)
    peers = find_requirement(function, PeerVotes)
    own = (labels.file,) if labels and labels.file else ()
    return own + (peers.files if peers else ())


def check_labels(file: str, task: Task) -> None:
    """Raise ValueError if a file labels none of a finite task's prompts."""
    labels = read_labels(file)
    size = task.train_size
    if size and not any(task.train(index).prompt in labels for index in range(size)):
        raise ValueError(
            f"reward.params: file: expected labels of the task's prompts, got none of its {size} "
            f"among the {len(labels)} of {file} (first prompt there: {next(iter(labels), None)!r}, "
            f"in the task: {task.train(0).prompt!r})"
        )
