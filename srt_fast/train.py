"""Self-Rewarded Training (arXiv 2505.21444), read from top to bottom: sample, vote, reward, pack, loss, step, sync, log.

Left out, and why: several devices (FSDP2 comes next; the loss already takes the global batch's normalizer and the
samplers their weight sync), and PPO epochs over the same mini-batch (the paper takes one optimizer step per batch).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from srt_fast import quickstart
from srt_fast.collapse.actions import CollapseHandler
from srt_fast.config import Config
from srt_fast.evaluation.evaluate import evaluate
from srt_fast.learner import Learner
from srt_fast.model.loading import check_path, load_policy, load_reference, quiet_transformers
from srt_fast.rewards import make_reward_function
from srt_fast.rewards.audit import AuditSample
from srt_fast.rewards.inputs import RewardInputs, check_labels
from srt_fast.rewards.pipeline import RewardPipeline
from srt_fast.run.checkpoint import random_state, set_random_state
from srt_fast.run.folder import RunFolder
from srt_fast.run.interrupts import RunInterrupted
from srt_fast.run.progress import RunProgress
from srt_fast.run.step_metrics import SAMPLED_PROMPTS, repetition, sample_rows, vote_metrics
from srt_fast.sampling import SamplerError, choose_engine, make_sampler
from srt_fast.sampling.prefetch import BatchPrefetcher
from srt_fast.supervised_replay import SupervisedReplay, as_rollouts
from srt_fast.tasks import make_task
from srt_fast.tasks.prompt import prompt_ids
from srt_fast.tasks.stream import PromptStream
from srt_fast.types import Batch
from srt_kernels.answers.reader import AnswerReader


def starting_model(
    config: Config, progress: RunProgress, check: Callable[[], None] = lambda: None
) -> str:
    """The path to load: model.path, or the folder of the embedded model, which is warm-started first if need be."""
    if config.model.path != "quickstart":
        return config.model.path
    title = f"warm start (until pass@1 {config.warm_start.pass1_low:g} to {config.warm_start.pass1_high:g})"
    progress.phase(title, None, ["pass1", "loss", "tokens_per_second"])
    return str(quickstart.ensure_warm_started(config, progress.update, check))


def evaluate_model(config: Config, *, quiet: bool = False) -> dict[str, float]:
    """Evaluate config.model on the held-out prompts of config.task: pass@1, pass@k, maj@k."""
    config = choose_engine(config)
    quiet_transformers()
    task = make_task(config)
    with RunProgress(quiet=quiet) as progress:
        policy = load_policy(starting_model(config, progress), config.model)
        reader = AnswerReader(policy.tokenizer, config.task.answer_rule)
        with contextlib.closing(make_sampler(config, policy)) as sampler:
            progress.phase("evaluation", 1, ["pass1", "maj", "vote_share"])
            result = evaluate(policy, sampler, reader, task, config, config.evaluation)
        progress.update(1, **result)
    return result


class Trainer:
    """One run. `Trainer(recipes.quickstart()).train()` is what `srt-fast train quickstart` does.

    resume: a run folder to continue from its last checkpoint. quiet: no progress on stderr. Raises ValueError for a
    configuration that does not fit together.
    """

    def __init__(self, config: Config, *, resume: str | Path | None = None, quiet: bool = False):
        self.config = config = choose_engine(config)
        config.objective()  # an objective or a model that does not exist is an error now, before anything is written
        if config.model.path != "quickstart":
            check_path(config.model.path)
        self.task = make_task(config)
        self.design = make_reward_function(config.reward.kind, config.reward.params)
        if "gold" in self.design.requires and not self.task.train_has_gold:
            raise ValueError(
                f"reward.kind: {config.reward.kind!r} needs gold answers, expected task.gold_column to name "
                "them, got none"
            )
        if "teacher" in self.design.requires and config.model.dtype != "float32":
            raise ValueError(
                f"model.dtype: expected float32 with reward.kind {config.reward.kind!r}, whose teacher moves by "
                f"less than bfloat16 resolves, got {config.model.dtype}"
            )
        if labels := getattr(self.design, "file", None):
            check_labels(labels, self.task)
        if config.monitor.labels == "gold" and not self.task.has_gold:
            raise ValueError(
                "monitor.labels: 'gold' needs held-out gold answers, expected task.gold_column to name them, "
                "got none"
            )
        self.run = RunFolder(config, resume=resume, quiet=quiet)

    def train(self) -> dict:
        """RunFolder to the end. Returns recipe, seed, steps, pass1_start, pass1_end, maj_start, maj_end, seconds, run_dir.

        Raises, after saving a checkpoint, RunInterrupted when SIGINT or SIGTERM arrived and SamplerError when the sampler failed.
        """
        quiet_transformers()
        with self.run as run, contextlib.ExitStack() as held:
            self._load(held)
            fields = ["pass1", "label_accuracy", "vote_share", "pseudo_reward", "tokens_per_second"]
            run.progress.phase("self-training", self.config.train.steps, fields)
            try:
                if "start" not in run.evaluations:
                    self._evaluate("start")
                while self._after_step():  # also what a signal left undone, in a resumed run
                    self._one_step()
                self._evaluate("end")
            except (RunInterrupted, SamplerError) as stop:
                self._save(
                    needed=isinstance(stop, RunInterrupted)
                )  # a full disk must not hide why the sampler failed
                raise
            self._save(needed=True)
            return run.finish(self.step)

    # ---- loading and saving ----

    def _load(self, held: contextlib.ExitStack) -> None:
        config, run, train = self.config, self.run, self.config.train
        saved = run.last_checkpoint()
        with_kl = train.reward_kl_coef or config.objective().kl_coef
        votes = config.monitor.action == "freeze" or (
            "start" in self.design.requires and not getattr(self.design, "file", None)
        )
        start = (
            starting_model(config, run.progress, run.signals.check)
            if with_kl or votes or not saved
            else None
        )
        now = str(saved / "model") if saved else start
        self.policy = load_policy(now, config.model)
        if "certainty" in self.design.requires and self.policy.head.softcap is not None:
            raise ValueError(
                f"reward.kind: {config.reward.kind!r} expected a model without softcap on its logits, got one "
                f"of {self.policy.head.softcap}"
            )
        reference = load_reference(start, config.model) if with_kl or votes else None
        trailing = load_reference(now, config.model) if "teacher" in self.design.requires else None
        self.reader = AnswerReader(self.policy.tokenizer, config.task.answer_rule)
        if config.sampling.engine == "vllm":
            run.progress.note(
                "sampling with vLLM"
                + (
                    f" at {', '.join(config.vllm.urls)}"
                    if config.vllm.urls
                    else f", whose log is {run.folder / 'vllm.log'}"
                )
            )
        self.sampler = make_sampler(
            config, self.policy, folder=run.folder, checkpoint=run.signals.check
        )
        held.callback(self.sampler.close)
        self.learner = Learner(
            config, self.policy, reference if with_kl else None, run.signals.check
        )
        evidence = RewardInputs(
            config,
            self.policy,
            self.sampler,
            self.reader,
            run.signals.check,
            start=reference if votes else None,
            trailing=trailing,
        )
        self.reward = RewardPipeline(
            config, self.task, self.policy, self.sampler, self.reader, evidence, self.design
        )
        self.replay = SupervisedReplay(config.curriculum)
        self.prefetcher = BatchPrefetcher(
            config, PromptStream(self.task, train.seed), self.policy, self.sampler
        )
        held.callback(self.prefetcher.close)
        self.collapse = CollapseHandler(self)
        self.step = 0
        torch.manual_seed(train.seed)
        if saved:
            self._restore(saved)
        self._check_sampler()
        self.collapse.begin()

    def _restore(self, saved: Path) -> None:
        """Everything of a checkpoint but the model."""
        state = torch.load(saved / "state.pt", weights_only=True, map_location="cpu")
        position = state["stream"]
        if "supply" not in position:  # a checkpoint of before batches were prepared ahead
            position["supply"] = {"prompts": position.pop("prompts"), "rollouts": None}
        self.collapse.load_state_dict(state.get("guard"))
        self._rewind(position)
        self.learner.load_state_dict(state["learner"])
        self.run.load_state_dict(state["run"])
        self.step = state["step"]
        self.run.progress.note(f"resumed from {saved} at step {self.step}")

    def _position(self) -> dict:
        """What a step changes before its optimizer update: enough to run the step again."""
        return {
            "random": random_state(),
            "supply": self.prefetcher.state_dict(),
            "reward": self.reward.state_dict(),
            "lift": self.replay.state_dict(),
        }

    def _rewind(self, position: dict) -> None:
        self.prefetcher.load_state_dict(
            position["supply"]
        )  # first: a sampler that still runs may draw from the same generator
        set_random_state(position["random"])
        self.reward.load_state_dict(position["reward"])
        self.replay.load_state_dict(position.get("lift", []))

    def _save(self, *, needed: bool) -> None:
        def write(folder: Path) -> None:
            self.policy.save(folder / "model")
            torch.save(
                {
                    "step": self.step,
                    "stream": self._position(),
                    "learner": self.learner.state_dict(),
                    "guard": self.collapse.state_dict(),
                    "run": self.run.state_dict(),
                },
                folder / "state.pt",
            )

        if self.run.save(
            self.step, write, needed=needed, again=self.collapse.acted_at == self.step
        ):
            self.collapse.saved()

    # ---- one step ----

    def _one_step(self) -> None:
        config, position, started = self.config, self._position(), time.perf_counter()
        try:
            batch = self.reward.batch(self.prefetcher)
            rollouts, reward = self.reward.with_second_task(batch)
            rewarded = time.perf_counter()
            if not config.vllm.one_step_off:
                self.sampler.sleep()
            if self.step + 1 < config.train.steps:
                self.prefetcher.prefetch()
            learned = self.learner.learn(rollouts, reward)
        except (RunInterrupted, SamplerError):
            self.learner.forget()
            self._rewind(position)
            raise
        self.step += 1
        learned |= self._supervise(batch)
        self.reward.after_update(self.step)
        trained = time.perf_counter()
        problem, gap = self._hand_over()
        synced = time.perf_counter()
        if batch.prompts.dropped:
            self.run.event(
                self.step,
                "prompts_dropped",
                f"{batch.prompts.dropped} prompts longer than {self.prefetcher.max_prompt_tokens} "
                "tokens were replaced",
                count=batch.prompts.dropped,
            )
        if not learned["updates"]:
            self.run.event(
                self.step,
                "step_skipped",
                "no rollout has a gradient (every group is unanimous or masked); step skipped",
            )
        values = (
            self._observe(batch)
            | learned
            | gap
            | {
                "seconds_sample": rewarded - started - batch.seconds_reward,
                "seconds_reward": batch.seconds_reward,
                "seconds_train": trained - rewarded,
                "seconds_sync": synced - trained,
                "seconds": time.perf_counter() - started,
            }
        )
        values["tokens_per_second"] = len(batch.rollouts.tokens) / values["seconds"]
        self.run.metrics.log(self.step, values)
        self.run.progress.update(self.step, **values)
        self.collapse.hear(values)
        if problem:
            raise SamplerError(problem)

    def _supervise(self, batch: Batch) -> dict:
        """Collect completions for the supervised steps, and take one where it is due."""
        self.replay.collect(batch.rollouts, batch.groups)
        pairs = [] if self.collapse.frozen else self.replay.take(self.step)
        return self.learner.supervise(as_rollouts(pairs, self.policy.device)) if pairs else {}

    def _hand_over(self) -> tuple[str | None, dict]:
        """Give the sampler the new weights and check that it has them. What is wrong, if anything, and the gap's metrics."""
        try:
            self.prefetcher.wait()
            self.sampler.sync(self.policy)
            gap = self.sampler.check(self.policy, self.probes)
        except SamplerError as error:
            return str(error), {}
        if gap is None:
            return None, {}
        mismatch = {"check_mismatch_max": gap.max, "check_mismatch_mean": gap.mean}
        try:
            gap.raise_for_cause()
        except SamplerError as error:
            return str(error), mismatch
        return None, mismatch

    def _check_sampler(self) -> None:
        """The check of every step, for the first one. The prompts of all checks are chosen here."""
        prompts = (
            prompt_ids(problem, self.config.task, self.policy.tokenizer)
            for problem in self.task.held_out(self.config.evaluation.prompts)
        )
        fitting = (ids for ids in prompts if len(ids) <= self.prefetcher.max_prompt_tokens)
        self.probes = list(islice(fitting, self.config.vllm.check_prompts))
        gap = self.sampler.check(self.policy, self.probes) if self.probes else None
        if gap:
            gap.raise_for_cause()

    def _after_step(self) -> bool:
        """The monitor's look, evaluation and checkpoint that are due after this step. Whether there is another one."""
        config, step = self.config, self.step
        self.collapse.watch()
        if step == config.train.steps or self.collapse.stopped:
            return False
        self._evaluate_if_due()
        if config.checkpoint.every and step and step % config.checkpoint.every == 0:
            self._save(needed=False)
        return True

    def _evaluate_if_due(self) -> None:
        every = self.config.evaluation.every
        if every and self.step and self.step % every == 0:
            self._evaluate("latest")

    def _evaluate(self, name: str) -> None:
        """Evaluate and remember the result as "start", "latest" or "end"."""
        done = self.run.evaluations.get("latest")
        if (
            done is None or done["step"] != self.step
        ):  # else a finished run was resumed: nothing has changed since
            result = evaluate(
                self.policy,
                self.sampler,
                self.reader,
                self.task,
                self.config,
                self.config.evaluation,
            )
            self.run.metrics.log(self.step, result, kind="eval")
            shown = [
                f"{name} {result[name]:.3f}"
                for name in ("pass1", "maj", "vote_share")
                if name in result
            ]
            self.run.progress.note(f"step {self.step}: held-out {', '.join(shown)}")
            done = {"step": self.step, **result}
        self.run.evaluations |= {"latest": done, name: done}

    def _observe(self, batch: Batch) -> dict:
        """Figures of the rollouts; the first ones go to samples.jsonl, some groups to the audit."""
        problems, rollouts, voted = batch.prompts.problems, batch.rollouts, batch.groups
        vote, correct, bounds, log = (
            voted.vote,
            voted.correct,
            rollouts.cu_groups.tolist(),
            self.config.log,
        )
        audited, everyone = self.run.audit.chosen(self.step, len(problems)), range(len(problems))
        sampled = log.sample_every and (
            self.step in (1, self.config.train.steps) or self.step % log.sample_every == 0
        )
        shown, with_gold = (
            everyone[:SAMPLED_PROMPTS] if sampled else [],
            correct is None and self.task.train_has_gold,
        )
        answers = self.reward.answers(rollouts, everyone if with_gold else {*audited, *shown})
        if with_gold:
            correct = self.reward.correct(problems, answers, rollouts.tokens.device)
        self.run.audit.submit(
            self.step,
            [
                AuditSample(
                    texts=answers[group],
                    keys=voted.keys[bounds[group] : bounds[group + 1]].tolist(),
                    majority=vote.majority[group].item(),
                )
                for group in audited
            ],
        )
        if sampled:
            self.run.metrics.samples(
                self.step,
                sample_rows(
                    problems,
                    rollouts,
                    self.policy.tokenizer,
                    sum((answers[group] for group in shown), []),
                    vote.rewards,
                    correct,
                ),
            )
        figures = {"rounds": batch.rounds} if self.config.reward.resample else {}
        if voted.judged is not None:
            figures["ungraded"] = voted.judged.isnan().float().mean().item()
        if voted.start_labels is not None:
            figures["labelled"] = (voted.start_labels != 0).float().mean().item()
        return (
            figures
            | vote_metrics(vote, correct, rollouts.cu_groups, batch.reward.rewards)
            | {
                "pseudo_reward": batch.reward.rewards.nanmean().item(),
                "truncated": rollouts.truncated.float().mean().item(),
                "completion_tokens": len(rollouts.tokens) / len(rollouts.truncated),
                "repetition": repetition(rollouts),
            }
        )
