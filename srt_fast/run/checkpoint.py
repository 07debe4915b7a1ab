"""Checkpoints that a crash cannot tear: written aside, fsynced, then renamed; the last K are kept."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from safetensors import SafetensorError

from srt_fast.files import _fsync

WRITING = ".writing-"


class CheckpointError(Exception):
    """A checkpoint could not be written (a full disk, say). Earlier ones are untouched."""


def save_checkpoint(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    keep: int,
    link: Path,
    *,
    again: bool = False,
) -> Path:
    """Have `write(folder)` fill a folder and make it `root/step-NNNNNN` in one rename. Then point `link` at the model in
    it, and delete all but the last `keep`. `again`: also where there is one of this step, which is then replaced.

    Raises CheckpointError where writing fails; what was there before is still there, and nothing half-written is left.
    """
    final, aside = root / f"step-{step:06d}", root / f"{WRITING}step-{step:06d}"
    if final.exists() and not again:  # a resumed run that was stopped before its next step
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left_by_a_crash in root.glob(f"{WRITING}*"):
            shutil.rmtree(left_by_a_crash)
        aside.mkdir()
        write(aside)
        for path in [*aside.rglob("*"), aside]:
            _fsync(path)
        if final.exists():
            final.rename(
                root / f"{WRITING}replaced-{step:06d}"
            )  # after a crash here the checkpoint before this one is the last
        aside.rename(final)
        _fsync(root)
        fresh = link.with_name(WRITING + link.name)
        fresh.unlink(missing_ok=True)
        fresh.symlink_to((final / "model").relative_to(link.parent))
        os.replace(fresh, link)
        for old in [*list_checkpoints(root)[:-keep], *root.glob(f"{WRITING}replaced-*")]:
            shutil.rmtree(old)
    except (
        OSError,
        SafetensorError,
        RuntimeError,
    ) as error:  # safetensors and torch.save wrap the disk's own error
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"could not write {final}: {(str(error).strip() or repr(error)).splitlines()[0]}"
        ) from error
    return final


def list_checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(root.glob("step-" + "[0-9]" * 6))


def random_state() -> dict:
    """Every random generator's state, as values that torch.load(weights_only=True) reads."""
    name, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict) -> None:
    """The inverse of random_state."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
