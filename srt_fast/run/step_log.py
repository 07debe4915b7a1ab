"""Logs a step: its metrics, its events, some completions, and some groups for the audit."""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import pairwise

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from srt_fast.config import Config
from srt_fast.rewards.audit import AuditSample
from srt_fast.rewards.pipeline import RewardPipeline
from srt_fast.run.folder import RunFolder
from srt_fast.run.step_metrics import (
    Figures,
    LoggedBatch,
    LoggedTurn,
    Numbers,
    batch_metrics,
    logged_batch,
    read_numbers,
    tensors_of,
)
from srt_fast.tasks.base import Task
from srt_fast.transfer import fetch
from srt_fast.types import Batch, Problem

SAMPLED_PROMPTS = 2
SAMPLED_COMPLETIONS = 3

Answers = dict[int, list[str | None]]  # the answers of each group, as texts


class StepLog:
    """Writes the steps of one run."""

    def __init__(
        self,
        config: Config,
        task: Task,
        run: RunFolder,
        rewards: RewardPipeline,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._config = config
        self._task = task
        self._run = run
        self._rewards = rewards
        self._tokenizer = tokenizer

    def tensors(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """What `write` reads of the batch, on its device. Empty on ranks that write nothing."""
        if not self._run.world.is_main:
            return {}
        return tensors_of(batch, texts=len(self._text_groups(step, batch)) > 0)

    def write(
        self, step: int, batch: Batch, read: dict[str, Tensor] | None, figures: Figures
    ) -> Numbers:
        """Write a step. figures: metrics of the training pass, the sync and the clock.

        read: `tensors` in host memory. None: they are read here, with a host sync. Returns all
        metrics of the step. Rank 0 computes and writes them for all ranks.
        """
        return self._run.world.on_main(lambda: self._write(step, batch, read, figures))

    def _write(
        self, step: int, batch: Batch, read: dict[str, Tensor] | None, figures: Figures
    ) -> Numbers:
        if batch.prompts.dropped:
            message = f"{batch.prompts.dropped} prompts were too long and were replaced"
            self._run.event(step, "prompts_dropped", message, count=batch.prompts.dropped)
        if not figures["updates"]:
            message = "no rollout has a gradient (every group is unanimous or masked); step skipped"
            self._run.event(step, "step_skipped", message)
        values = self._values(step, batch, read) | read_numbers(figures)
        all_rollouts = [batch.rollouts, *(turn.rollouts for turn in batch.later)]
        tokens = sum(len(rollouts.tokens) for rollouts in all_rollouts)
        values["tokens_per_second"] = tokens / values["seconds"]
        self._run.metrics.log(step, values)
        self._run.progress.update(step, **values)
        return values

    def _values(self, step: int, batch: Batch, read: dict[str, Tensor] | None) -> Numbers:
        """The batch's metrics. Reads answers as texts only for gold, samples and audit."""
        problems = batch.prompts.problems
        text_groups = self._text_groups(step, batch)
        if read is None:
            tensors = self.tensors(step, batch)
            read = dict(zip(tensors, fetch(*tensors.values()), strict=True))
        logged = logged_batch(batch, read)
        answers: Answers = {}
        if logged.tokens is not None:
            answers = self._rewards.answers(
                logged.tokens, logged.truncated, logged.layout, text_groups
            )
        correct = logged.correct
        if self._compares_gold(batch):
            correct = self._rewards.compare_with_gold(problems, answers)
        audit_groups = self._run.audit.choose_groups(step, len(problems))
        self._run.audit.submit(step, _audit_samples(logged, answers, audit_groups))
        if self._samples_are_due(step):
            sampled = _sampled(batch)
            rows = sample_rows(problems, logged, sampled, self._tokenizer, answers, correct)
            self._run.metrics.log_samples(step, rows)
        rounds = {"rounds": batch.rounds} if self._config.reward.resample else {}
        return rounds | batch_metrics(logged, correct)

    def _text_groups(self, step: int, batch: Batch) -> Collection[int]:
        """The groups whose answers are read as texts."""
        count = len(batch.prompts.problems)
        if self._compares_gold(batch):
            return range(count)
        sampled = _sampled(batch) if self._samples_are_due(step) else []
        groups = batch.rollouts.layout.groups
        return {
            *self._run.audit.choose_groups(step, count),
            *(groups[rollout] for rollout in sampled),
        }

    def _compares_gold(self, batch: Batch) -> bool:
        return batch.groups.correct is None and self._task.train_has_gold

    def _samples_are_due(self, step: int) -> bool:
        every = self._config.log.sample_every
        is_first_or_last = step in (1, self._config.train.steps)
        return every > 0 and (is_first_or_last or step % every == 0)


def _audit_samples(
    batch: LoggedBatch, answers: Answers, audit_groups: list[int]
) -> list[AuditSample]:
    """These groups, as the audit takes them."""
    bounds = batch.layout.group_bounds
    samples = []
    for group in audit_groups:
        keys = batch.keys[bounds[group] : bounds[group + 1]].tolist()
        majority = int(batch.vote.majority[group].item())
        samples.append(AuditSample(texts=answers[group], keys=keys, majority=majority))
    return samples


def _sampled(batch: Batch) -> list[int]:
    """The completions that are kept to read: the first of the first prompts, and the first that a
    later turn asks about.
    """
    bounds = batch.rollouts.layout.group_bounds
    sampled: list[int] = []
    for first, last in list(pairwise(bounds))[:SAMPLED_PROMPTS]:
        sampled += range(first, min(first + SAMPLED_COMPLETIONS, last))
    if batch.later:
        asked = sorted(set(batch.later[0].parents))
        sampled += [place for place in asked[:SAMPLED_COMPLETIONS] if place not in sampled]
    return sampled


def sample_rows(
    problems: list[Problem],
    batch: LoggedBatch,
    sampled: list[int],
    tokenizer: PreTrainedTokenizerBase,
    answers: dict[int, list[str | None]],
    correct: Tensor | None,
) -> list[dict]:
    """Completions with their later turns, for samples.jsonl and the report.

    sampled: the completions, as places among the step's. answers: of their groups.
    """
    assert batch.tokens is not None
    bounds = batch.layout.group_bounds
    offsets = batch.layout.offsets
    rows = []
    for index in sampled:
        group = batch.layout.groups[index]
        row = {
            "prompt": problems[group].prompt,
            "completion": tokenizer.decode(batch.tokens[offsets[index] : offsets[index + 1]]),
            "answer": answers[group][index - bounds[group]],
            "gold": problems[group].gold,
            "majority": bool(batch.vote.rewards[index]),
            "correct": None if correct is None else bool(correct[index]),
            "truncated": bool(batch.truncated[index]),
        }
        if batch.later:
            row["turns"] = _later_turns(batch.later, index, tokenizer)
        rows.append(row)
    return rows


def _later_turns(
    later: list[LoggedTurn], index: int, tokenizer: PreTrainedTokenizerBase
) -> list[dict]:
    """The conversation after a completion: the first reply of each turn, until none is asked."""
    rows = []
    for logged in later:
        turn = logged.turn
        if index not in turn.parents:
            break
        index = turn.parents.index(index)
        assert logged.tokens is not None
        offsets = turn.rollouts.layout.offsets
        conversation = turn.conversations[turn.rollouts.layout.groups[index]]
        reward = logged.rewards[index].item()
        rows.append(
            {
                "question": conversation.question,
                "completion": tokenizer.decode(logged.tokens[offsets[index] : offsets[index + 1]]),
                "reward": reward if math.isfinite(reward) else None,
                "truncated": bool(logged.truncated[index]),
            }
        )
    return rows
