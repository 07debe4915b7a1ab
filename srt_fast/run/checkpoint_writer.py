"""Writing a checkpoint: at once, or in a thread while the next steps run."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.optim import Optimizer

from srt_fast.distributed.manifest import write_manifest
from srt_fast.distributed.optimizer_state import optimizer_settings, optimizer_tensors
from srt_fast.distributed.tensor_files import write_tensors
from srt_fast.distributed.world import World, WorldError
from srt_fast.errors import CheckpointError, first_line
from srt_fast.files import WRITING_PREFIX, sync_to_disk

if TYPE_CHECKING:
    from srt_fast.model.policy import Policy

Tensors = Mapping[str, Mapping[str, Tensor]]
"""Tensors by the name of their folder, then by their own name."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a checkpoint holds. Tensors are not copied. The same names on all ranks."""

    tensors: Tensors
    """"model" has the names of a Hugging Face model, tied weights once, or those of an adapter."""
    state: Mapping[str, Any]
    """What torch.load(weights_only=True) reads. The same on all ranks. Small."""
    save_config: Callable[[Path], None]
    """Writes what a Hugging Face model has beside its weights. Rank 0 calls it."""
    weights_file: str = "model"
    """Name of the model's files of weights, without a suffix."""

    @classmethod
    def of(
        cls,
        policy: Policy,
        state: Mapping[str, Any],
        *,
        optimizer: Optimizer | None = None,
        teacher: Mapping[str, Tensor] | None = None,
    ) -> Contents:
        """The policy with what belongs to it, and state["optimizer"] for read_optimizer."""
        tensors: dict[str, Mapping[str, Tensor]] = {"model": policy.checkpoint_weights()}
        if optimizer is not None:
            tensors["optimizer"] = optimizer_tensors(policy.model, optimizer)
            state = {**state, "optimizer": optimizer_settings(policy.model, optimizer)}
        if teacher is not None:
            tensors["teacher"] = teacher
        return cls(
            tensors=tensors,
            state=state,
            save_config=policy.save_without_weights,
            weights_file=policy.weights_file,
        )


class CheckpointWriter:
    """Writes one checkpoint: begin, write, commit. `write` may run in a thread of its own.

    It talks to the other ranks on world.checkpoints only. The methods raise CheckpointError on all
    ranks if one fails.
    """

    def __init__(self, root: Path, step: int, *, keep: int, link: Path, world: World) -> None:
        self.checkpoint = root / f"step-{step:06d}"
        self.world = replace(world, control=world.checkpoints)
        self._step = step
        self._keep = keep
        self._link = link
        self._unfinished = root / f"{WRITING_PREFIX}{self.checkpoint.name}"
        self._weights_file = "model"  # begin sets it

    def begin(self, contents: Contents, *, overwrite: bool) -> bool:
        """Write all but the tensors. False: the step has a checkpoint, which stays."""
        self._weights_file = contents.weights_file
        if self.world.broadcast(self.checkpoint.exists() and not overwrite):
            return False
        with self._failures(), self.world.agreement():
            if self.world.is_main:
                root = self.checkpoint.parent
                root.mkdir(parents=True, exist_ok=True)
                _delete(root.glob(f"{WRITING_PREFIX}*"))  # a crash left them
                model = self._unfinished / "model"
                model.mkdir(parents=True)
                contents.save_config(model)
                torch.save(dict(contents.state), self._unfinished / "state.pt")
        return True

    def write(self, tensors: Tensors) -> None:
        """Write the tensors and the manifest."""
        with self._failures():
            for name, part in tensors.items():
                # The model is read by other programs. The rest is read by read_tensors only.
                is_model = name == "model"
                file = self._weights_file if is_model else "model"
                folder = self._unfinished / name
                write_tensors(folder, part, self.world, merge=is_model, file=file)
            write_manifest(self._unfinished, self._step, self.world)

    def commit(self) -> None:
        """Give the checkpoint its name, and delete old ones."""
        with self._failures(), self.world.agreement():
            if self.world.is_main:
                root = self.checkpoint.parent
                _replace(self.checkpoint, self._unfinished)
                _point_link(self._link, self.checkpoint / "model")
                # Later ones are damaged: the run was resumed from one before them.
                earlier = [path for path in list_checkpoints(root) if path <= self.checkpoint]
                _delete(earlier[: -self._keep])
                _delete(root.glob(f"{WRITING_PREFIX}replaced-*"))

    def copy_to_host(self, tensors: Tensors) -> Tensors:
        """A copy that does not change with the next step."""
        options = StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
        detached = {
            folder: {name: tensor.detach() for name, tensor in part.items()}
            for folder, part in tensors.items()
        }
        with self._failures(), self.world.agreement():
            copy = DefaultStager(options).stage(detached)
        assert isinstance(copy, dict)
        return copy

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except WorldError:
            raise
        except (CheckpointError, OSError, RuntimeError) as error:  # torch.save: a RuntimeError
            if self.world.is_main:
                shutil.rmtree(self._unfinished, ignore_errors=True)
            message = f"could not write {self.checkpoint}: {first_line(error)}"
            raise CheckpointError(message) from error


class BackgroundSave:
    """A checkpoint that a thread writes from a copy of the tensors in host memory.

    writer: has begun. The constructor returns when the tensors are copied. It raises
    CheckpointError on all ranks if the memory of one is too small.
    """

    def __init__(self, writer: CheckpointWriter, tensors: Tensors, world: World) -> None:
        self.checkpoint = writer.checkpoint
        self._writer = writer
        self._world = world
        copy = writer.copy_to_host(tensors)
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing = executor.submit(writer.write, copy)
        executor.shutdown(wait=False)  # the thread ends after its work

    def finish(self, *, wait: bool) -> bool:
        """Commit the checkpoint if all ranks have written it. All ranks call it.

        wait: until they have. Returns whether it is committed. Raises CheckpointError on all ranks
        if writing failed on one.
        """
        if not wait and not all(self._world.gather(self._writing.done())):
            return False
        self._writing.result()
        self._writer.commit()
        return True


def list_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(root.glob("step-" + "[0-9]" * 6))


def checkpoint_step(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


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
