"""Self-Rewarded Training (arXiv 2505.21444).

Trainer.train_step is the algorithm on one page: sample, vote, ask, reward, pack, loss, step, sync,
log. Only reward functions of episodes ask (srt_fast/rewards/turns.py).

Several ranks (torchrun) run this loop together, each with the whole batch (World). Left out: PPO
epochs over one mini-batch, since the paper takes one optimizer step per batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.config.train import SUPERVISED_OBJECTIVES
from srt_fast.distributed.launch import start as start_world
from srt_fast.distributed.world import lost_ranks_are_errors
from srt_fast.evaluation.evaluate import evaluate
from srt_fast.model.loading import check_path, load_policy, quiet_transformers
from srt_fast.parts import RunParts, make_parts, measure_limit, starting_model
from srt_fast.rewards import make_reward_function
from srt_fast.rewards.base import GoldAnswers, find_requirement
from srt_fast.rewards.inputs import check_labels, label_files
from srt_fast.rewards.joining import marked_completions
from srt_fast.rewards.turns import turns_of
from srt_fast.run.checkpoint import load_training_state
from srt_fast.run.checkpoint_writer import Contents
from srt_fast.run.folder import RunFolder
from srt_fast.run.interrupts import RunInterrupted
from srt_fast.run.progress import RunProgress
from srt_fast.run.step_log import StepLog
from srt_fast.sampling import SamplerError, choose_engine, make_sampler
from srt_fast.supervised_replay import pack_pairs
from srt_fast.tasks import make_task
from srt_fast.types import Batch, Prompts, Rollouts
from srt_kernels import AnswerReader

PROGRESS_FIELDS = ["pass1", "label_accuracy", "vote_share", "pseudo_reward", "tokens_per_second"]
LIMIT_FIELDS = ["train_mfu", "limit_share"]


class Trainer:
    """One run. `Trainer(recipes.quickstart()).train()` is what `srt-fast train quickstart` does.

    resume: a run folder to continue from its last checkpoint. quiet: no progress on stderr.
    Raises ValueError for a configuration that does not fit together.
    """

    parts: RunParts  # made by train()

    def __init__(
        self, config: Config, *, resume: str | Path | None = None, quiet: bool = False
    ) -> None:
        self.config = choose_engine(config)
        self.world = start_world(config.dist, config.model.device)
        with self.world.agreement():
            self._check()
        resume = resume or self.world.recall("run_dir")  # torchrun has restarted the ranks
        self.run = RunFolder(self.config, resume=resume, quiet=quiet, world=self.world)
        self.step = 0

    def _check(self) -> None:
        """Make the task and the reward function, and check that they fit together."""
        config = self.config
        if config.model.path != "quickstart":
            check_path(config.model.path)
        self.task = make_task(config)
        self.reward_function = make_reward_function(config.reward.kind, config.reward.params)
        if find_requirement(self.reward_function, GoldAnswers) and not self.task.train_has_gold:
            raise ValueError(
                f"reward.kind: {config.reward.kind!r} needs gold answers, expected one for every "
                "training prompt, got prompts without"
            )
        self._check_turns()
        for file in label_files(self.reward_function):
            check_labels(file, self.task)
        if config.monitor.labels == "gold" and not self.task.has_gold:
            raise ValueError(
                "monitor.labels: 'gold' needs gold answers, expected one for every held-out "
                "prompt, got prompts without"
            )

    def _check_turns(self) -> None:
        train, kind = self.config.train, self.config.reward.kind
        curriculum = self.config.curriculum
        all_turns = turns_of(self.reward_function)
        turns = len(all_turns)
        needs_verdicts = curriculum.supervised_every and curriculum.supervised_pick == "accepted"
        if needs_verdicts and (turns < 2 or all_turns[1].reply != "verdict"):
            raise ValueError(
                "curriculum.supervised_pick: 'accepted' needs a reward function whose second turn "
                f"is a verdict, expected verify or coverl, got reward.kind {kind!r}"
            )
        if train.turn_weights and len(train.turn_weights) != turns:
            expected = f"{turns} numbers, one a turn," if turns else "none"
            raise ValueError(
                f"train.turn_weights: expected {expected} with reward.kind {kind!r}, "
                f"got {len(train.turn_weights)}"
            )
        if turns and train.objective in SUPERVISED_OBJECTIVES:
            raise ValueError(
                f"train.objective: expected a policy gradient with reward.kind {kind!r}, which has "
                f"{turns} turns, got {train.objective!r}"
            )

    def train(self) -> dict[str, Any]:
        """Run to the end.

        Returns recipe, seed, steps, pass1_start, pass1_end, maj_start, maj_end, seconds, run_dir.
        Raises RunInterrupted for SIGINT or SIGTERM, and SamplerError if the sampler fails. Both
        come after a checkpoint was saved. Raises WorldError if a rank is lost.
        """
        quiet_transformers()
        with lost_ranks_are_errors(), self.run, contextlib.ExitStack() as resources:
            self._begin(resources)
            try:
                if "start" not in self.run.evaluations:
                    self._evaluate("start")
                self._after_step()  # in a resumed run: what a signal left undone
                while not self.is_finished:
                    self.train_step()
                    self._after_step()
                self._evaluate("end")
            except (RunInterrupted, SamplerError) as error:
                # A full disk must not hide why the sampler failed.
                self._save(is_required=isinstance(error, RunInterrupted))
                raise
            self._save(is_required=True)
            summary = self.run.finish(self.step)
        self.world.close()
        return summary

    def train_step(self) -> None:
        """Sample, vote, ask, reward, pack, loss, step, sync, log."""
        parts = self.parts
        meter = parts.meter
        meter.start()
        with self._transaction():
            batch: Batch | None = None
            while batch is None or parts.rewards.needs_prompts(batch):
                with meter.part("sample"):
                    prompts, rollouts = parts.prefetcher.next_batch(self._round_end - self.step)
                batch = self._reward(batch, prompts, rollouts)
            if hard_prompts := parts.rewards.hard_prompts(batch):
                with meter.part("sample"):
                    rollouts = parts.prefetcher.sample_again(hard_prompts)
                batch = self._reward(batch, hard_prompts, rollouts)
            training_rollouts, training_reward = parts.rewards.join_turns(batch)
            with meter.part("train"):
                self._prefetch()
                minibatches = parts.learner.pack(training_rollouts, training_reward)
                read: dict[str, Tensor] | None = None  # for the log, with the last update
                for number, minibatch in enumerate(minibatches, 1):
                    for micro_batch in minibatch:
                        parts.learner.loss(micro_batch).backward()
                    is_last = number == len(minibatches)
                    also = self._step_log.tensors(self.step + 1, batch) if is_last else {}
                    read = parts.learner.step(also)
        with meter.part("train"):
            self.step += 1
            values = parts.learner.end_step() | self._supervised_step(batch) | self._round_figures
            parts.rewards.end_step(self.step)
        try:
            with meter.part("sync"):
                self._sync(values)
        finally:  # a step whose sync fails is logged too
            values = self._step_log.write(self.step, batch, read, values | meter.metrics())
            parts.collapse.observe(values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Undo a step that is interrupted before its first update."""
        position = self.parts.position()
        try:
            yield
        except (RunInterrupted, SamplerError):
            self.parts.learner.discard_gradients()
            self.parts.rewind(position)
            raise

    # ---- parts of a step ----

    def _reward(self, batch: Batch | None, prompts: Prompts, rollouts: Rollouts) -> Batch:
        """Vote, ask, reward. The step's earlier rollouts (`batch`) with these."""
        rewards, meter = self.parts.rewards, self.parts.meter
        meter.count_sampling(rollouts)
        with meter.part("reward"):
            groups = rewards.vote(prompts, rollouts)
            later = rewards.ask(prompts, rollouts, groups)
            return rewards.reward(batch, prompts, rollouts, groups, later)

    def _prefetch(self) -> None:
        """Free the sampler's memory, and prepare the next batch while this one trains."""
        if not self.config.vllm.one_step_off:
            self.parts.sampler.sleep()
        if self.step + 1 < self.config.train.steps:
            self.parts.prefetcher.prefetch()

    def _supervised_step(self, batch: Batch) -> dict[str, float]:
        """Collect completions for supervised steps, and take one if it is due."""
        parts = self.parts
        if parts.collapse.is_frozen:
            return {}
        marked = marked_completions(batch)
        parts.replay.collect_marked(marked)
        if not marked:
            verdicts = batch.later[0].groups if batch.later else None
            parts.replay.collect(batch.rollouts, batch.groups, verdicts)
        pairs = parts.replay.take(self.step)
        return (
            parts.learner.supervised_step(pack_pairs(pairs, parts.policy.device)) if pairs else {}
        )

    def _sync(self, values: dict[str, Any]) -> None:
        """Give the sampler the new weights. Add the check's figures to `values`.

        Raises SamplerError if the sampler fails or its log-probs are not the trainer's.
        """
        self.parts.prefetcher.wait()
        self.parts.sampler.sync(self.parts.policy)
        self._check_sampler(values)

    def _check_sampler(self, values: dict[str, Any]) -> None:
        parts = self.parts
        mismatch = parts.sampler.check(parts.policy, parts.check_prompts)
        if mismatch:
            values["check_mismatch_max"] = mismatch.max
            values["check_mismatch_mean"] = mismatch.mean
            mismatch.raise_for_cause()

    # ---- offline rounds ----

    @property
    def _round_bounds(self) -> list[int]:
        """The steps that offline rounds end at, in order."""
        train = self.config.train
        return [number * train.steps // train.rounds for number in range(1, train.rounds + 1)]

    @property
    def _round_end(self) -> int:
        """The step that the present offline round ends at: its first step samples up to there.

        Without rounds it is the next step.
        """
        if not self.config.train.rounds:
            return self.step + 1
        return next(bound for bound in self._round_bounds if bound > self.step)

    @property
    def _round_figures(self) -> dict[str, float]:
        """The number of the step's offline round, from 1."""
        if not self.config.train.rounds:
            return {}
        return {"round": 1 + sum(bound < self.step for bound in self._round_bounds)}

    # ---- between steps ----

    @property
    def uses_gold(self) -> bool:
        """Whether gold answers have an effect on the weights."""
        monitor = self.config.monitor
        acts_on_gold = monitor.labels == "gold" and monitor.action != "log"
        return acts_on_gold or find_requirement(self.reward_function, GoldAnswers) is not None

    @property
    def is_finished(self) -> bool:
        return self.step >= self.config.train.steps or self.parts.collapse.is_stopped

    def _after_step(self) -> None:
        """The probe, action, evaluation and checkpoint that are due after this step."""
        self.parts.collapse.act(self.step)
        self.run.finish_saving(self.step)
        if self.is_finished or self.step == 0:
            return
        evaluation_every = self.config.evaluation.every
        if evaluation_every and self.step % evaluation_every == 0:
            self._evaluate("latest")
        checkpoint_every = self.config.checkpoint.every
        if checkpoint_every and self.step % checkpoint_every == 0:
            self._save(is_required=False)

    def _evaluate(self, name: str) -> None:
        """Evaluate, and keep the result as "start", "latest" or "end"."""
        parts = self.parts
        latest = self.run.evaluations.get("latest")
        if latest is None or latest["step"] != self.step:
            scores = evaluate(
                parts.policy,
                parts.sampler,
                parts.reader,
                self.task,
                self.config,
                self.config.evaluation,
                turns_of(self.reward_function),
            )
            self.run.metrics.log(self.step, scores, kind="eval")
            names = [score for score in ("pass1", "maj", "vote_share") if score in scores]
            figures = ", ".join(f"{score} {scores[score]:.3f}" for score in names)
            self.run.progress.note(f"step {self.step}: held-out {figures}")
            latest = {"step": self.step, **scores}
        self.run.evaluations |= {"latest": latest, name: latest}

    # ---- beginning and saving ----

    def _begin(self, resources: contextlib.ExitStack) -> None:
        """Make the parts of the run, and continue from its last checkpoint if there is one."""
        self.parts = make_parts(self.config, self.task, self.reward_function, self.run, resources)
        tokenizer = self.parts.policy.tokenizer
        self._step_log = StepLog(self.config, self.task, self.run, self.parts.rewards, tokenizer)
        torch.manual_seed(self.config.train.seed)
        if checkpoint := self.run.last_checkpoint():
            self._restore(checkpoint)
        limit = measure_limit(self.config, self.parts.policy, self.run, self.step)
        self.parts.meter.limit = limit
        fields = PROGRESS_FIELDS + (LIMIT_FIELDS if limit else [])
        self.run.progress.phase("self-training", self.config.train.steps, fields)
        if self.parts.check_prompts:
            self._check_sampler({})
        self.parts.collapse.begin()

    def _save(self, *, is_required: bool) -> None:
        """Write a checkpoint. Raises CheckpointError only if it is required."""
        parts = self.parts
        state = {"step": self.step, "run": self.run.state_dict()} | parts.state_dict()
        contents = Contents.of(
            parts.policy,
            state,
            optimizer=parts.learner.optimizer,
            teacher=parts.rewards.teacher_weights(),
        )
        self.run.save(
            self.step,
            contents,
            is_required=is_required,
            overwrite=parts.collapse.acted_at == self.step,
            when_saved=partial(parts.collapse.mark_checkpoint, parts.collapse.best_step),
        )

    def _restore(self, checkpoint: Path) -> None:
        """Load everything of a checkpoint but the model."""
        parts = self.parts
        state = load_training_state(
            checkpoint, parts.policy, parts.learner.optimizer, parts.rewards.teacher_weights()
        )
        parts.load_state_dict(state)
        self.run.load_state_dict(state["run"])
        self.step = state["step"]
        self.run.progress.note(f"resumed from {checkpoint} at step {self.step}")


def evaluate_model(
    config: Config, *, folder: Path | None = None, quiet: bool = False
) -> dict[str, float | int | None]:
    """Evaluate config.model on the held-out prompts of config.task: pass@1, pass@k, maj@k.

    If config.reward has turns, they are asked and scored too.
    folder: where vLLM's log goes, if vLLM samples in this process.
    """
    config = choose_engine(config)
    quiet_transformers()
    task = make_task(config)
    turns = turns_of(make_reward_function(config.reward.kind, config.reward.params))
    world = start_world(config.dist, config.model.device)
    with RunProgress(quiet=quiet or not world.is_main) as progress:
        policy = load_policy(starting_model(config, progress), config.model, world)
        reader = AnswerReader(policy.tokenizer, config.task.answer_rule)
        with contextlib.closing(make_sampler(config, policy, folder=folder)) as sampler:
            progress.phase("evaluation", 1, ["pass1", "maj", "vote_share"])
            scores = evaluate(policy, sampler, reader, task, config, config.evaluation, turns)
        progress.update(1, **scores)
    world.close()
    return scores
