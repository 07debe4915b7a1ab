"""What a run does about collapse: look at the held-out prompts, hear the monitor, act on its alarm."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch

from srt_fast.checkpoint import list_checkpoints, save_checkpoint
from srt_fast.held_out import HeldOut
from srt_fast.monitor import CAUSES, Monitor

if TYPE_CHECKING:
    from srt_fast.trainer import Trainer

ROLLBACKS = 3


class Guard:
    """The monitor of one run, and its action. Its state travels with the checkpoint; the best weights are kept in the run's
    folder best/, for the actions that go back to them."""

    def __init__(self, trainer: Trainer):
        self._trainer, self._settings = trainer, trainer.config.monitor
        self._monitor = Monitor()
        self._held_out = HeldOut(trainer.config, trainer.task, trainer.policy, trainer.sampler, trainer.reader,
                                 trainer.run.signals.check) if self._settings.every else None
        self.stopped, self._frozen, self._rollbacks, self._watched = False, False, 0, 0

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
        new, alarm = self._monitor.judge()
        for cause in new:
            run.event(step, "warning", f"{cause}: {CAUSES[cause].meaning}", cause=cause)
        if alarm:
            causes = ", ".join(self._monitor.causes)
            run.event(step, "alarm", f"this looks like collapse ({causes})", causes=causes)
            getattr(self, f"_{self._settings.action}")(step)

    def _log(self, step: int) -> None:
        """The event is all."""

    def _stop(self, step: int) -> None:
        self._put_back()
        self.stopped = True
        best = self._monitor.best_step
        self._trainer.run.event(step, "stopped", f"stopped; the model is that of step {best}, the best by the held-out score",
                                best_step=best)

    def _rollback(self, step: int) -> None:
        if self._rollbacks == ROLLBACKS:
            return self._stop(step)
        self._rollbacks += 1
        self._put_back(optimizer=True)
        self._trainer.learner.scale_lr(0.5 ** self._rollbacks)
        self._monitor.restart()
        best = self._monitor.best_step
        self._trainer.run.event(step, "rolled_back", f"back to the weights of step {best}, learning rate times "
                                f"{0.5 ** self._rollbacks:g}", best_step=best)

    def _freeze(self, step: int) -> None:
        if not self._frozen:
            self._frozen = True
            self._trainer.reward.freeze()
            self._trainer.run.event(step, "frozen", "from here on the labels are the starting model's votes")

    def _look(self, step: int) -> None:
        scores, kl = self._held_out.look()
        best = self._monitor.hold_out(step, scores, kl)
        self._trainer.run.metrics.log(step, {
            "held_out": sum(scores) / len(scores), "kl_start": kl, "best_step": self._monitor.best_step}, kind="monitor")
        if best and self._settings.action in ("stop", "rollback"):
            self._keep(step)

    def _keep(self, step: int) -> None:
        trainer, root = self._trainer, self._trainer.run.folder / "best"

        def write(folder):
            trainer.policy.save(folder / "model")
            torch.save(trainer.learner.state_dict(), folder / "learner.pt")

        shutil.rmtree(root / f"step-{step:06d}", ignore_errors=True)  # of a run that was resumed from before it
        save_checkpoint(root, step, write, keep=1, link=trainer.run.folder / "best_model")

    def _put_back(self, *, optimizer: bool = False) -> None:
        """The best weights, to the sampler too."""
        trainer = self._trainer
        [best] = list_checkpoints(trainer.run.folder / "best")
        trainer.policy.load(best / "model")
        if optimizer:
            trainer.learner.load_state_dict(torch.load(best / "learner.pt", weights_only=True, map_location="cpu"))
        trainer.supply.settle()
        trainer.sampler.sync(trainer.policy)

    def state_dict(self) -> dict:
        return {"monitor": self._monitor.state_dict(), "held_out": self._held_out.state_dict() if self._held_out else None,
                "stopped": self.stopped, "frozen": self._frozen, "rollbacks": self._rollbacks, "watched": self._watched}

    def load_state_dict(self, state: dict | None) -> None:
        """None, of a checkpoint from before there was a monitor: it begins with the steps to come, without held-out prompts."""
        if state is None:
            self._held_out = None
            return
        self._monitor.load_state_dict(state["monitor"])
        if self._held_out:
            self._held_out.load_state_dict(state["held_out"])
        self.stopped, self._frozen = state["stopped"], state["frozen"]
        self._rollbacks, self._watched = state["rollbacks"], state["watched"]
        if self._frozen:
            self._trainer.reward.freeze()
