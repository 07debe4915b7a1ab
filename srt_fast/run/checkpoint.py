"""Checkpoints that a crash cannot tear.

A checkpoint is written under another name, synced to disk, then renamed. The last few are kept.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError

from srt_fast.errors import first_line
from srt_fast.files import WRITING_PREFIX, sync_to_disk


class CheckpointError(Exception):
    """A checkpoint could not be written, for example on a full disk. Earlier ones are untouched."""


def save_checkpoint(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    keep: int,
    link: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the checkpoint `root/step-NNNNNN` in one rename, and return its path.

    `write(folder)` fills the folder. Then `link` points at the folder's model, and all checkpoints
    but the last `keep` are deleted. If this step has a checkpoint, it stays as it is, or is
    replaced with `overwrite`.

    Raises CheckpointError if writing fails. Then earlier checkpoints are still there, and no
    half-written one is.
    """
    checkpoint = root / f"step-{step:06d}"
    if checkpoint.exists() and not overwrite:
        # A resumed run was stopped before its next step.
        return checkpoint
    unfinished = root / f"{WRITING_PREFIX}{checkpoint.name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _delete(root.glob(f"{WRITING_PREFIX}*"))  # a crash left them
        unfinished.mkdir()
        write(unfinished)
        for path in [*unfinished.rglob("*"), unfinished]:
            sync_to_disk(path)
        _replace(checkpoint, unfinished)
        _point_link(link, checkpoint / "model")
        _delete(list_checkpoints(root)[:-keep])
        _delete(root.glob(f"{WRITING_PREFIX}replaced-*"))
    except (OSError, SafetensorError, RuntimeError) as error:
        # safetensors and torch.save wrap the disk's own error in the last two.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(f"could not write {checkpoint}: {first_line(error)}") from error
    return checkpoint


def list_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(root.glob("step-" + "[0-9]" * 6))


def checkpoint_step(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


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


def _replace(checkpoint: Path, unfinished: Path) -> None:
    """Give the unfinished folder the checkpoint's name."""
    if checkpoint.exists():
        # A crash after this line leaves the checkpoint before this one as the last.
        checkpoint.rename(checkpoint.with_name(f"{WRITING_PREFIX}replaced-{checkpoint.name}"))
    unfinished.rename(checkpoint)
    sync_to_disk(checkpoint.parent)


def _point_link(link: Path, target: Path) -> None:
    """Make `link` a relative link to `target`, in one rename."""
    unfinished = link.with_name(WRITING_PREFIX + link.name)
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target.relative_to(link.parent))
    os.replace(unfinished, link)


def _delete(folders: Iterable[Path]) -> None:
    for folder in list(folders):
        shutil.rmtree(folder)
