"""The start of a world: the ranks that torchrun started, or one process."""

from __future__ import annotations

import datetime
import itertools
import os

import torch
import torch.distributed as dist
from torch.distributed import (
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    Store,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.distributed.device_mesh import init_device_mesh

from srt_fast.config import DistConfig
from srt_fast.distributed.world import ONE_PROCESS, World, lost_ranks_are_errors

CHECKPOINT_TIMEOUT = datetime.timedelta(hours=1)
"""Least time that a rank waits for the others while a checkpoint is written."""

_worlds = itertools.count()  # of this process


def start(config: DistConfig, device: str = "auto") -> World:
    """The world that torchrun started, or one process.

    device: model.device. On CUDA each rank takes the GPU of its LOCAL_RANK.

    Raises ValueError if shard x replicas is not the number of ranks, and for more ranks than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in os.environ and size == 1:
        return ONE_PROCESS
    timeout = datetime.timedelta(seconds=config.timeout)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    with lost_ranks_are_errors():
        store = _agent_store(timeout)
    if size == 1:
        return World(restarts=restarts, agent_store=store)
    rank = int(os.environ["RANK"])
    mesh_shape = _mesh_shape(config, size)
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if on_cuda:
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    with lost_ranks_are_errors():
        if not dist.is_initialized():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
                # Without a prefix a restarted rank may read the addresses of ranks that are gone
                # (pytorch #135712).
                store=PrefixStore(f"restart-{restarts}/world-{next(_worlds)}", store),
                rank=rank,
                world_size=size,
                timeout=timeout,
            )
        mesh = init_device_mesh(
            "cuda" if on_cuda else "cpu", mesh_shape, mesh_dim_names=("replicate", "shard")
        )
        control = dist.new_group(backend="gloo", timeout=timeout)
        # A slow disk is no hang.
        checkpoints = dist.new_group(backend="gloo", timeout=max(timeout, CHECKPOINT_TIMEOUT))
    assert isinstance(control, dist.ProcessGroup)
    assert isinstance(checkpoints, dist.ProcessGroup)
    return World(
        rank=rank,
        size=size,
        settings=config,
        mesh=mesh,
        control=control,
        checkpoints=checkpoints,
        restarts=restarts,
        agent_store=store,
    )


def _mesh_shape(config: DistConfig, size: int) -> tuple[int, int]:
    shard = config.shard or size // config.replicas
    if shard * config.replicas != size:
        raise ValueError(
            "dist.shard: expected shard x replicas to be the number of ranks, "
            f"got {shard} x {config.replicas} for {size} ranks"
        )
    return config.replicas, shard


def _take_gpu(local_rank: int) -> None:
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"torchrun: expected at most as many processes on a node as it has GPUs, {count}, got "
            f"process {local_rank + 1}"
        )
    torch.cuda.set_device(local_rank)


def _agent_store(timeout: datetime.timedelta) -> Store:
    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout
    )
    return PrefixStore("srt-fast", store)
