"""Acts on a collapse: watches the probe and the monitor, and does what monitor.action says."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from srt_fast.collapse.detector import FalseAlarmBound
from srt_fast.collapse.monitor import SIGNS, Monitor
from srt_fast.collapse.probe import CollapseProbe
from srt_fast.config import MonitorConfig
from srt_fast.errors import CheckpointError
from srt_fast.learner import Learner
from srt_fast.model.policy import Policy
from srt_fast.rewards.pipeline import RewardPipeline
from srt_fast.run.checkpoint import CheckpointStore, load_training_state
from srt_fast.run.checkpoint_writer import Contents, checkpoint_step, list_checkpoints
from srt_fast.run.folder import RunFolder
from srt_fast.sampling import Sampler
from srt_fast.sampling.prefetch import BatchPrefetcher
from srt_fast.supervised_replay import SupervisedReplay

MAX_ROLLBACKS = 3


class CollapseHandler:
    """The monitor of one run, and its action.

    Checkpoints hold its state. The run's folder best/ holds the best weights, for the actions that
    go back to them. probe: None if monitor.every is 0.
    """

    def __init__(
        self,
        settings: MonitorConfig,
        probe: CollapseProbe | None,
        *,
        run: RunFolder,
        policy: Policy,
        sampler: Sampler,
        prefetcher: BatchPrefetcher,
        rewards: RewardPipeline,
        learner: Learner,
        replay: SupervisedReplay,
    ) -> None:
        self._settings = settings
        self._probe = probe
        self._run = run
        self._policy = policy
        self._sampler = sampler
        self._prefetcher = prefetcher
        self._rewards = rewards
        self._learner = learner
        self._replay = replay
        self._monitor = Monitor(FalseAlarmBound.of(settings))
        self._best = CheckpointStore(
            self._best_folder, keep=99, link=run.folder / "best_model", world=run.world
        )
        self.is_stopped = False
        self.is_frozen = False
        self.acted_at: int | None = None  # the step after which an action changed the run
        self._rollbacks = 0
        self._last_step = 0  # the last step that `act` has seen
        self._checkpointed_best: int | None = None  # best step of the last checkpoint

    def begin(self) -> None:
        """Ask the starting model, in a new run."""
        if self._probe and self._monitor.best_step is None:
            self._probe.begin()
            self._measure(0)

    def observe(self, values: Mapping[str, Any]) -> None:
        """Take a step's metrics."""
        self._monitor.observe(values)

    def act(self, step: int) -> None:
        """After a step: measure the probe if that is due, log new signs, act on an alarm.

        Acts once a step. If a signal interrupts the measurement, the resumed run does all of it.
        """
        if step == self._last_step or self.is_stopped:
            return
        if self._probe and step % self._settings.every == 0:
            self._measure(step)
        self._last_step = step
        verdict = self._monitor.check()
        for sign in verdict.new_signs:
            self._run.event(step, "warning", f"{sign}: {SIGNS[sign].meaning}", sign=sign)
        if verdict.raises_alarm:
            self._report_alarm(step)
            actions = {"stop": self._stop, "rollback": self._rollback, "freeze": self._freeze}
            if self._settings.action != "log":
                actions[self._settings.action](step)

    def _report_alarm(self, step: int) -> None:
        reference = self._monitor.detector.state.reference
        score = self._monitor.mean("probe_score")
        assert reference is not None
        message = f"this looks like collapse: the probe's score is {score:.2f}, was {reference:.2f}"
        self._run.event(step, "alarm", message, score=score, reference=reference)

    @property
    def best_step(self) -> int | None:
        """The step of the best weights."""
        return self._monitor.best_step

    def mark_checkpoint(self, best_step: int | None) -> None:
        """A checkpoint was written. best_step: when its writing began."""
        self._checkpointed_best = best_step

    # ---- actions ----

    def _stop(self, step: int) -> None:
        best = checkpoint_step(self._load_best(step))
        self.is_stopped = True
        self._run.event(
            step,
            "stopped",
            f"stopped; the model is that of step {best}, the best by the probe's score",
            best_step=best,
        )
        self._sync_sampler()

    def _rollback(self, step: int) -> None:
        if self._rollbacks == MAX_ROLLBACKS:
            self._stop(step)
            return
        folder = self._load_best(step)
        best = checkpoint_step(folder)
        self._rollbacks += 1
        factor = 0.5**self._rollbacks
        load_training_state(
            folder, self._policy, self._learner.optimizer, self._rewards.teacher_weights()
        )
        self._learner.scale_lr(factor)
        self._replay.clear()
        self._monitor.restart()
        self._run.event(
            step,
            "rolled_back",
            f"back to the weights of step {best}, learning rate times {factor:g}",
            best_step=best,
        )
        self._sync_sampler()

    def _freeze(self, step: int) -> None:
        if self.is_frozen:
            return
        self.is_frozen = True
        self.acted_at = step
        self._rewards.freeze()
        message = "from here on the labels are the starting model's votes"
        self._run.event(step, "frozen", message)

    def _sync_sampler(self) -> None:
        """The last part of an action: a run resumes with the action done if the sampler fails."""
        self._prefetcher.discard()
        self._sampler.sync(self._policy)

    # ---- the probe and the best weights ----

    def _measure(self, step: int) -> None:
        assert self._probe is not None
        measurement = self._probe.measure(step)
        is_best = self._monitor.observe_probe(step, measurement)
        look = measurement.look
        values = {
            "probe_score": look.score,
            "probe_agreeing_1": look.agreeing[0],
            "probe_samples_1": look.samples[0],
            "probe_agreeing_2": look.agreeing[1],
            "probe_samples_2": look.samples[1],
            "probe_reference": self._monitor.detector.state.reference,
            "probe_kl": measurement.kl,
            "probe_dissent": measurement.dissent,
            "best_step": self._monitor.best_step,
        }
        self._run.metrics.log(step, values, kind="monitor")
        if is_best and self._settings.action in ("stop", "rollback"):
            self._save_best(step)

    @property
    def _best_folder(self) -> Path:
        return self._run.folder / "best"

    def _save_best(self, step: int) -> None:
        """Write the best weights. Keeps those that the last checkpoint would go back to."""
        self._run.finish_saving(step, wait=True)
        contents = Contents.of(self._policy, {})
        if self._settings.action == "rollback":
            contents = Contents.of(
                self._policy,
                {},
                optimizer=self._learner.optimizer,
                teacher=self._rewards.teacher_weights(),
            )
        try:
            self._best.save(step, contents, overwrite=True)
        except CheckpointError as error:
            self._run.event(step, "checkpoint_failed", str(error))
            return
        self._delete_best(lambda old_step: old_step not in (step, self._checkpointed_best))

    def _delete_best(self, is_obsolete: Callable[[int], bool]) -> None:
        def delete() -> None:
            for folder in list_checkpoints(self._best_folder):
                if is_obsolete(checkpoint_step(folder)):
                    shutil.rmtree(folder)

        self._run.world.on_main(delete)

    def _load_best(self, step: int) -> Path:
        """Load the best weights that could be written and are intact. Returns their folder.

        Raises CheckpointError if there are none.
        """
        folder = self._best.newest_intact()
        for message in self._best.refused.values():
            self._run.event(step, "checkpoint_refused", message)
        if folder is None:
            raise CheckpointError(f"{self._best_folder}: expected intact weights, got none")
        self._policy.load(folder / "model")
        self.acted_at = step
        return folder

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self._monitor.state_dict(),
            "probe": self._probe.state_dict() if self._probe else None,
            "is_stopped": self.is_stopped,
            "is_frozen": self.is_frozen,
            "rollbacks": self._rollbacks,
            "last_step": self._last_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._monitor.load_state_dict(state["monitor"])
        if self._probe:
            self._probe.load_state_dict(state["probe"])
        self.is_stopped = state["is_stopped"]
        self.is_frozen = state["is_frozen"]
        self._rollbacks = state["rollbacks"]
        self._last_step = state["last_step"]
        best_step = self._monitor.best_step
        self._checkpointed_best = best_step
        # A killed run may have saved best weights of steps that this run takes again.
        self._delete_best(lambda step: step > (best_step or 0))
        if self.is_frozen:
            self._rewards.freeze()
