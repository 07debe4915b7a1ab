"""The processes of a run: one, or as many as torchrun started.

The batch is replicated, the work is sharded. Every rank holds the step's rollouts, draws from the
same random state, and computes the same votes, rewards, advantages and metrics. Only sampling and
the passes through the model are split. So a vote never crosses ranks, and a run may change its
number of ranks when it resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh

from srt_fast.config import DistConfig
from srt_fast.errors import first_line

Value = TypeVar("Value")

ON_ALL_RANKS = "All ranks raise this error."
"""A note of such an error: one rank should show it."""


class WorldError(RuntimeError):
    """The ranks lost each other, or differ where they must be the same."""


class Failure(NamedTuple):
    """An error of one rank, as the other ranks receive it."""

    rank: int
    error: Exception


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of a run. A run in one process has size 1 and no process groups.

    All ranks call a method together and in the same order. Properties are local. A method raises
    WorldError if a rank does not answer within dist.timeout.
    """

    rank: int = 0
    size: int = 1
    settings: DistConfig = field(default_factory=DistConfig)
    mesh: DeviceMesh | None = None
    """Dimensions "replicate" and "shard". None: one process."""
    control: dist.ProcessGroup | None = None
    """gloo, for status and small values."""
    checkpoints: dist.ProcessGroup | None = None
    """gloo, for checkpoints that are written while the next step runs."""
    restarts: int = 0
    """How often torchrun has restarted the ranks (--max-restarts)."""
    agent_store: Store | None = None
    """torchrun's store. It survives restarts."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run's folder and talks to the user."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        return self.size > 1

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank if one rank has an error: the error of the lowest such rank."""
        if not self.is_distributed:
            if error is not None:
                raise error
            return
        failures = self.gather(None if error is None else Failure(self.rank, _portable(error)))
        for failure in failures:
            if failure is None:
                continue
            shared = error if failure.rank == self.rank else failure.error
            assert shared is not None
            shared.add_note(ON_ALL_RANKS)
            raise shared

    @contextlib.contextmanager
    def agreement(self) -> Iterator[None]:
        """Agree at the end of the block on whether it raised an exception on any rank.

        The block contains no collective call: a rank that raises would miss it.
        """
        try:
            yield
        except Exception as error:
            self.agree(error)
            raise AssertionError("agree raises the error") from error
        self.agree(None)

    def on_main(self, function: Callable[[], Value]) -> Value:
        """function() on rank 0, and its result or its error on all ranks."""
        result: Any = None
        with self.agreement():
            if self.is_main:
                result = function()
        return self.broadcast(result)

    def gather(self, value: Value) -> list[Value]:
        """The value of each rank. Values are pickled, so they should be small."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.size
        with lost_ranks_are_errors():
            dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: Value) -> Value:
        """The value of rank 0."""
        if not self.is_distributed:
            return value
        values: list[Any] = [value]
        with lost_ranks_are_errors():
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather(None)

    def gather_tensor(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of each rank, on this rank's device. [n, ...] with an n that may differ."""
        if not self.is_distributed:
            return [tensor]
        lengths = self.gather(len(tensor))
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        tensors = [torch.empty_like(padded) for _ in lengths]
        with lost_ranks_are_errors():
            dist.all_gather(tensors, padded)
        return [part[:length] for part, length in zip(tensors, lengths, strict=True)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks. All ranks get the same bits. Changes `tensor`."""
        if self.is_distributed:
            with lost_ranks_are_errors():
                dist.all_reduce(tensor, dist.ReduceOp.SUM)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """The largest value of the ranks. Changes `tensor`."""
        if self.is_distributed:
            with lost_ranks_are_errors():
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def check_digest(self, what: str, values: Callable[[], tuple[Any, ...]]) -> None:
        """Raise WorldError if the ranks differ in values(): tensors, or what has a repr."""
        if not self.is_distributed:
            return
        digests = self.gather(digest(*values()))
        different = [rank for rank, value in enumerate(digests) if value != digests[0]]
        if different:
            ranks = ", ".join(map(str, different))
            raise WorldError(f"{what}: expected the same on all ranks, got others on rank {ranks}")

    def remember(self, name: str, value: str) -> None:
        """Let `recall` find this value after torchrun has restarted the ranks. Rank 0's counts."""
        if self.agent_store and self.is_main:
            self.agent_store.set(name, value)

    def recall(self, name: str) -> str | None:
        """The value that `remember` kept before a restart. None without one. Not collective."""
        if self.agent_store is None or not self.restarts or not self.agent_store.check([name]):
            return None
        return self.agent_store.get(name).decode()

    def close(self) -> None:
        """End the process groups. Local: a rank that ends with an error does not wait."""
        if self.is_distributed and dist.is_initialized():
            dist.destroy_process_group()


ONE_PROCESS = World()
"""The world of a run that torchrun did not start."""


def digest(*values: Any) -> str:
    """A hash of tensors, and of values by their repr."""
    state = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous().view(torch.uint8)
            state.update(data.numpy().tobytes())
        else:
            state.update(repr(value).encode())
    return state.hexdigest()


def _portable(error: Exception) -> Exception:
    """An error that the other ranks can unpickle, without its traceback."""
    if type(error).__module__.startswith("srt_fast.") or isinstance(error, ValueError | OSError):
        return error
    return RuntimeError(f"{type(error).__name__}: {first_line(error)}")


@contextlib.contextmanager
def lost_ranks_are_errors() -> Iterator[None]:
    """Inside, a failed collective call is a WorldError of one line.

    torch reports a rank that died or hangs as a RuntimeError. gloo's has no class of its own.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        is_collective = isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text
        if isinstance(error, WorldError) or not is_collective:
            raise
        raise WorldError(
            "a rank has ended or did not answer within dist.timeout; the logs of the other ranks "
            f"may say why ({first_line(error)})"
        ) from error
