"""What a run does about collapse: look at the held-out prompts, hear the monitor, act on its alarm."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from srt_fast.collapse.monitor import CAUSES, Monitor
from srt_fast.collapse.probe import CollapseProbe
from srt_fast.run.checkpoint import CheckpointError, list_checkpoints, save_checkpoint

if TYPE_CHECKING:
    from srt_fast.train import Trainer

ROLLBACKS = 3


class CollapseHandler:
    """The monitor of one run, and its action. Its state travels with the checkpoint; the best weights are kept in the run's
    folder best/, for the actions that go back to them."""

    def __init__(self, trainer: Trainer):
        self._trainer, self._settings = trainer, trainer.config.monitor
        self._monitor = Monitor()
        self._held_out = (
            CollapseProbe(
                trainer.config,
                trainer.task,
                trainer.policy,
                trainer.sampler,
                trainer.reader,
                trainer.run.signals.check,
            )
            if self._settings.every
            else None
        )
        self.stopped = self.frozen = False
        self.acted_at: int | None = None  # the step after which an action has changed the run
        self._rollbacks = self._watched = 0
        self._saved_best: int | None = None  # the best step that the last checkpoint goes back to

    def begin(self) -> None:
        """Ask the starting model, in a new run."""
        if self._held_out and self._monitor.best_step is None:
            self._held_out.begin()
            self._look(0)

    def hear(self, values: dict) -> None:
        """Take a step's metrics."""
        self._monitor.observe(values)

    def watch(self) -> None:
        """After a step: look at the held-out prompts where that is due, say what is new, act on an alarm. Once a step; a signal
        that arrives during the look leaves all of it to the resumed run."""
        run, step = self._trainer.run, self._trainer.step
        if step == self._watched or self.stopped:
            return
        if self._held_out and step % self._settings.every == 0:
            self._look(step)
        self._watched = step
        new, alarm = self._monitor.labels()
        for cause in new:
            run.event(step, "warning", f"{cause}: {CAUSES[cause].meaning}", cause=cause)
        if alarm:
            causes = ", ".join(self._monitor.causes)
            run.event(step, "alarm", f"this looks like collapse ({causes})", causes=causes)
            getattr(self, f"_{self._settings.action}")(step)

    def saved(self) -> None:
        """A checkpoint with this state has been written."""
        self._saved_best = self._monitor.best_step

    def _log(self, step: int) -> None:
        """The event is all."""

    def _stop(self, step: int) -> None:
        best = self._put_back(step)
        self.stopped = True
        self._trainer.run.event(
            step,
            "stopped",
            f"stopped; the model is that of step {best}, the best by the held-out score",
            best_step=best,
        )
        self._tell_sampler()

    def _rollback(self, step: int) -> None:
        if self._rollbacks == ROLLBACKS:
            return self._stop(step)
        trainer, best = self._trainer, self._put_back(step)
        self._rollbacks += 1
        saved = torch.load(
            self._root / f"step-{best:06d}" / "state.pt", weights_only=True, map_location="cpu"
        )
        trainer.learner.optimizer.load_state_dict(saved["optimizer"])
        trainer.learner.scale_lr(0.5**self._rollbacks)
        trainer.reward.put_back(saved["teacher"])
        trainer.replay.clear()
        self._monitor.restart()
        trainer.run.event(
            step,
            "rolled_back",
            f"back to the weights of step {best}, learning rate times {0.5**self._rollbacks:g}",
            best_step=best,
        )
        self._tell_sampler()

    def _freeze(self, step: int) -> None:
        if not self.frozen:
            self.frozen, self.acted_at = True, step
            self._trainer.reward.freeze()
            self._trainer.run.event(
                step, "frozen", "from here on the labels are the starting model's votes"
            )

    def _look(self, step: int) -> None:
        scores, kl = self._held_out.look()
        best = self._monitor.hold_out(step, scores, kl)
        self._trainer.run.metrics.log(
            step,
            {
                "held_out": sum(scores) / len(scores),
                "kl_start": kl,
                "best_step": self._monitor.best_step,
            },
            kind="monitor",
        )
        if best and self._settings.action in ("stop", "rollback"):
            self._keep(step)

    @property
    def _root(self) -> Path:
        return self._trainer.run.folder / "best"

    def _keep(self, step: int) -> None:
        """Write the best weights. The ones that the last checkpoint goes back to stay too."""
        trainer = self._trainer

        def write(folder: Path) -> None:
            trainer.policy.save(folder / "model")
            if self._settings.action == "rollback":
                torch.save(
                    {
                        "optimizer": trainer.learner.optimizer.state_dict(),
                        "teacher": trainer.reward.teacher_state(),
                    },
                    folder / "state.pt",
                )

        try:
            save_checkpoint(
                self._root, step, write, keep=99, link=trainer.run.folder / "best_model", again=True
            )
        except CheckpointError as error:
            trainer.run.event(step, "checkpoint_failed", str(error))
            return
        self._drop(lambda old: old not in (step, self._saved_best))

    def _drop(self, unwanted: Callable[[int], bool]) -> None:
        for folder in list_checkpoints(self._root):
            if unwanted(int(folder.name.removeprefix("step-"))):
                shutil.rmtree(folder)

    def _put_back(self, step: int) -> int:
        """Load the best weights; their step. Where the best ones could not be written, the best of those that could."""
        *_, best = list_checkpoints(self._root)
        self._trainer.policy.load(best / "model")
        self.acted_at = step
        return int(best.name.removeprefix("step-"))

    def _tell_sampler(self) -> None:
        """Last of all: should the sampler fail, the run goes on from a state in which the action is done."""
        self._trainer.prefetcher.discard()
        self._trainer.sampler.sync(self._trainer.policy)

    def state_dict(self) -> dict:
        return {
            "monitor": self._monitor.state_dict(),
            "held_out": self._held_out.state_dict() if self._held_out else None,
            "stopped": self.stopped,
            "frozen": self.frozen,
            "rollbacks": self._rollbacks,
            "watched": self._watched,
        }

    def load_state_dict(self, state: dict | None) -> None:
        """None, of a checkpoint from before there was a monitor: it begins with the steps to come, without held-out prompts."""
        if state is None:
            self._held_out = None
            return
        self._monitor.load_state_dict(state["monitor"])
        if self._held_out:
            self._held_out.load_state_dict(state["held_out"])
        self.stopped, self.frozen = state["stopped"], state["frozen"]
        self._rollbacks, self._watched = state["rollbacks"], state["watched"]
        self._saved_best = self._monitor.best_step
        self._drop(
            lambda step: step > (self._saved_best or 0)
        )  # of steps that a killed run took and this one takes again
        if self.frozen:
            self._trainer.reward.freeze()
