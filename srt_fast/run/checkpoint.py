"""Checkpoints that a crash cannot tear, and a changed byte cannot enter.

A checkpoint is the folder step-NNNNNN:

    model/         a complete Hugging Face model, whatever the number of ranks, or an adapter
    optimizer/     the optimizer's state by parameter name, safetensors
    teacher/       an EMA teacher's weights, or those of its adapter, safetensors
    state.pt       the small rest, read with weights_only
    manifest.json  the format, and the size and SHA-256 of each file

It is written under another name, synced to disk, then renamed. The last few are kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor
from torch.optim import Optimizer

from srt_fast.distributed.manifest import verify_checkpoint
from srt_fast.distributed.optimizer_state import read_optimizer
from srt_fast.distributed.tensor_files import read_tensors
from srt_fast.distributed.world import World
from srt_fast.errors import CheckpointError
from srt_fast.run.checkpoint_writer import (
    BackgroundSave,
    CheckpointWriter,
    Contents,
    list_checkpoints,
)

if TYPE_CHECKING:
    from srt_fast.model.policy import Policy


class CheckpointStore:
    """The checkpoints in the folder `root`. At most one is being written.

    After a checkpoint is saved, `link` points at its model, and all checkpoints up to its step but
    the last `keep` are deleted. All ranks call the methods.
    """

    def __init__(self, root: Path, *, keep: int, link: Path, world: World) -> None:
        self.refused: dict[Path, str] = {}  # damaged ones, and what is wrong with them
        self._root = root
        self._keep = keep
        self._link = link
        self._world = world
        self._pending: tuple[BackgroundSave, Callable[[], None]] | None = None

    def save(
        self,
        step: int,
        contents: Contents,
        *,
        overwrite: bool = False,
        in_background: bool = False,
        when_saved: Callable[[], None] = lambda: None,
    ) -> None:
        """Write the checkpoint `root/step-NNNNNN` in one rename, and call when_saved.

        If this step has an intact checkpoint, it stays as it is, or is replaced with `overwrite`.
        in_background: return when the tensors are copied to host memory. A later call of `finish`
        gives the checkpoint its name.

        Raises CheckpointError on all ranks if writing fails on one. Then earlier checkpoints are
        still there, and no half-written one is.
        """
        self.finish(wait=True)
        writer = CheckpointWriter(
            self._root, step, keep=self._keep, link=self._link, world=self._world
        )
        is_damaged = writer.checkpoint in self.refused
        if not writer.begin(contents, overwrite=overwrite or is_damaged):
            when_saved()
            return
        if in_background:
            self._pending = BackgroundSave(writer, contents.tensors, self._world), when_saved
            return
        writer.write(contents.tensors)
        writer.commit()
        self._mark_saved(writer.checkpoint, when_saved)

    def finish(self, *, wait: bool) -> None:
        """Give the checkpoint that is being written its name if all ranks have written it.

        wait: until they have. Raises CheckpointError on all ranks if writing failed on one.
        """
        if self._pending is None:
            return
        background_save, when_saved = self._pending
        try:
            is_pending = not background_save.finish(wait=wait)
        except CheckpointError:
            self._pending = None
            raise
        if not is_pending:
            self._pending = None
            self._mark_saved(background_save.checkpoint, when_saved)

    def newest_intact(self) -> Path | None:
        """The newest checkpoint whose files are those of its manifest.

        Reads newer checkpoints too. They go into `refused`, with the reason.
        """
        for checkpoint in reversed(self._world.broadcast(list_checkpoints(self._root))):
            try:
                verify_checkpoint(checkpoint, self._world)
            except (CheckpointError, OSError) as error:
                self.refused[checkpoint] = str(error)
            else:
                return checkpoint
        return None

    def _mark_saved(self, checkpoint: Path, when_saved: Callable[[], None]) -> None:
        self.refused.pop(checkpoint, None)
        when_saved()


def load_training_state(
    checkpoint: Path,
    policy: Policy,
    optimizer: Optimizer,
    teacher: Mapping[str, Tensor] | None,
) -> dict[str, Any]:
    """Load a checkpoint's optimizer and EMA teacher in place. Returns its small rest (state.pt).

    All ranks call it. teacher: the weights to fill. None without a teacher.
    """
    state = torch.load(checkpoint / "state.pt", weights_only=True, map_location="cpu")
    optimizer_state = read_optimizer(
        checkpoint / "optimizer", state["optimizer"], policy.model, optimizer, policy.world
    )
    optimizer.load_state_dict(optimizer_state)
    if teacher:
        read_tensors(checkpoint / "teacher", teacher, policy.world)
    return state


def random_state() -> dict[str, Any]:
    """Every random generator's state, as values that torch.load(weights_only=True) reads."""
    numpy_state: Any = numpy.random.get_state(legacy=True)
    name, keys, *position = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *position),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of random_state."""
    version, internal_state, gauss_next = state["python"]
    random.setstate((version, tuple(internal_state), gauss_next))
    name, keys, *position = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *position))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
