"""The ranks of a run: agreement on errors, gathered values, and ranks that are lost."""

import os
import re
import signal
import time

import pytest
import torch

from srt_fast.config import DistConfig
from srt_fast.distributed.launch import start
from srt_fast.distributed.world import ON_ALL_RANKS, ONE_PROCESS, World, WorldError
from srt_fast.sampling import SamplerError
from support.ranks import RanksFailed, run_ranks


def test_one_process():
    assert start(DistConfig()) is ONE_PROCESS
    assert ONE_PROCESS.gather("value") == ["value"]
    assert ONE_PROCESS.on_main(lambda: 3) == 3
    tensor = torch.ones(2)
    assert ONE_PROCESS.sum(tensor) is tensor
    with pytest.raises(ValueError, match="expected"), ONE_PROCESS.agreement():
        raise ValueError("expected this")
    ONE_PROCESS.check_digest("values", lambda: (torch.ones(2),))


def collectives_task() -> None:
    world = start(DistConfig())
    rank = world.rank
    tensors = world.gather_tensor(torch.full((rank + 1, 2), float(rank)))
    assert [tensor.tolist() for tensor in tensors] == [[[0.0, 0.0]], [[1.0, 1.0]] * 2]
    assert world.sum(torch.tensor([1.0, float(rank)])).tolist() == [2.0, 1.0]
    assert world.max(torch.tensor([float(rank)])).tolist() == [1.0]
    assert world.broadcast(f"of rank {rank}") == "of rank 0"
    assert world.on_main(lambda: os.environ["RANK"]) == "0"
    world.check_digest("rewards", lambda: (torch.ones(3), [1, "a"]))
    _fails(WorldError, "rewards.*rank 1", lambda: world.check_digest("rewards", lambda: (rank,)))
    _fails(SamplerError, "of rank 1", lambda: _raise_on(world, 1))
    _fails(SamplerError, "of rank 0", lambda: _raise_on(world, 0, 1))
    _fails(OSError, "disk", lambda: world.on_main(lambda: _raise(OSError(28, "disk full"))))
    world.close()


def _raise_on(world: World, *ranks: int) -> None:
    with world.agreement():
        if world.rank in ranks:
            raise SamplerError(f"the engine of rank {world.rank} failed")


def _raise(error: Exception) -> None:
    raise error


def _fails(kind: type[Exception], pattern: str, function) -> None:
    """The function fails with this error on all ranks, and a collective call works afterwards."""
    with pytest.raises(kind) as raised:
        function()
    assert re.search(pattern, str(raised.value)), str(raised.value)
    if kind is not WorldError:
        assert ON_ALL_RANKS in raised.value.__notes__


def test_ranks_share_values_and_errors():
    run_ranks(collectives_task, 2, timeout=300)


def lost_rank_task(fault: str) -> None:
    world = start(DistConfig(timeout=4))
    world.barrier()
    if world.rank == 1:
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    started_at = time.monotonic()
    try:
        world.barrier()
    except WorldError as error:
        print(f"{time.monotonic() - started_at:.1f} s: {error}", flush=True)
        os._exit(7)


@pytest.mark.parametrize("fault", ["killed", "hung"])
def test_a_lost_rank_ends_the_others(fault):
    """Within dist.timeout, with one line that says what happened."""
    with pytest.raises(RanksFailed) as failure:
        run_ranks(lost_rank_task, 2, fault, timeout=300)
    seconds, message = failure.value.outputs[0].split(" s: ")
    assert float(seconds) < 4 + 2
    assert message.startswith("a rank has ended or did not answer within dist.timeout")
