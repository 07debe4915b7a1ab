"""The helper that runs ranks: it returns outputs, reports failures and stops ranks that hang."""

import os
import sys
import time

import pytest
import torch
import torch.distributed as dist

from support.ranks import RanksFailed, run_ranks


def add_ranks(start: int) -> None:
    dist.init_process_group("gloo")
    total = torch.tensor(start + dist.get_rank())
    dist.all_reduce(total)
    print(f"rank {dist.get_rank()}: {int(total)}, {torch.get_num_threads()} thread")
    dist.destroy_process_group()


def fail_on_rank_1() -> None:
    rank = int(os.environ["RANK"])
    print(f"rank {rank} has started", flush=True)
    if rank == 1:
        sys.exit("rank 1 has no weights")


def hang() -> None:
    time.sleep(60)


def test_outputs_come_by_rank():
    assert run_ranks(add_ranks, 2, 10, timeout=300) == [
        "rank 0: 21, 1 thread\n",
        "rank 1: 21, 1 thread\n",
    ]


def test_a_failure_shows_the_output_of_all_ranks():
    with pytest.raises(RanksFailed, match="torchrun ended with 1") as failure:
        run_ranks(fail_on_rank_1, 2, timeout=300)
    assert failure.value.returncode == 1
    assert failure.value.outputs == ["rank 0 has started\n", "rank 1 has started\n"]
    for text in ("rank 0 has started", "rank 1 has no weights"):
        assert text in str(failure.value)


def test_ranks_that_hang_are_stopped():
    with pytest.raises(RanksFailed, match="3 s were over") as failure:
        run_ranks(hang, 2, timeout=3)
    assert failure.value.returncode is None
