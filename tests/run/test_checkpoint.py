"""Checkpoints: complete or not there, damage is refused by name, random generators restored."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from srt_fast.config import DistConfig
from srt_fast.distributed.launch import start
from srt_fast.distributed.manifest import verify_checkpoint
from srt_fast.distributed.tensor_files import read_tensors
from srt_fast.distributed.world import World
from srt_fast.errors import CheckpointError
from srt_fast.run.checkpoint import CheckpointStore, random_state, set_random_state
from srt_fast.run.checkpoint_writer import Contents
from support.ranks import RanksFailed, run_ranks


def open_store(root: Path, keep: int = 2, world: World = World()) -> CheckpointStore:  # noqa: B008
    return CheckpointStore(root, keep=keep, link=root / "model", world=world)


def contents_of(value: float | Tensor) -> Contents:
    weight = value if isinstance(value, Tensor) else torch.full((300,), float(value))
    return Contents(
        tensors={"model": {"weight": weight}, "optimizer": {"weight.exp_avg": weight}},
        state={"position": 3},
        save_config=lambda folder: (folder / "config.json").write_text('{"layers": 2}'),
    )


def saved_weight(checkpoint: Path) -> Tensor:
    weight = torch.zeros(300)
    read_tensors(checkpoint / "model", {"weight": weight}, World())
    return weight


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip_bit(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_keeps_the_last_and_deletes_what_a_crash_left(tmp_path):
    (tmp_path / ".writing-step-000001").mkdir()
    store = open_store(tmp_path)
    for step in (1, 2, 3, 3):
        store.save(step, contents_of(step))
    assert names(tmp_path) == ["model", "step-000002", "step-000003"]
    assert (tmp_path / "model").readlink() == Path("step-000003/model")
    assert store.newest_intact() == tmp_path / "step-000003"
    assert torch.load(tmp_path / "step-000003" / "state.pt", weights_only=True) == {"position": 3}


def test_a_checkpoint_of_the_same_step_is_replaced_only_with_overwrite(tmp_path):
    store = open_store(tmp_path, keep=1)
    store.save(1, contents_of(1))
    store.save(1, contents_of(2))
    assert saved_weight(tmp_path / "step-000001")[0] == 1
    store.save(1, contents_of(3), overwrite=True)
    assert saved_weight(tmp_path / "step-000001")[0] == 3
    assert names(tmp_path) == ["model", "step-000001"]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path, in_background):
    store = open_store(tmp_path, keep=1)
    store.save(1, contents_of(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # as a full disk
    try:
        with pytest.raises(CheckpointError, match="could not write .*step-000002: .*model"):
            large = torch.ones(10_000)  # 40 kB
            store.save(2, contents_of(large), in_background=in_background)
            store.finish(wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["model", "step-000001"]
    store.save(3, contents_of(3))
    assert names(tmp_path) == ["model", "step-000003"]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model/model.safetensors", lambda file: flip_bit(file, -1), "expected SHA-256"),
        ("optimizer/model.safetensors", lambda file: flip_bit(file, -500), "expected SHA-256"),
        ("state.pt", lambda file: flip_bit(file, 100), "expected SHA-256"),
        ("model/config.json", lambda file: flip_bit(file, -2), "expected SHA-256"),
        ("manifest.json", lambda file: flip_bit(file, 30), "its own SHA-256 differs"),
        ("model/model.safetensors", truncate, r"expected \d+ bytes, got \d+"),
        ("optimizer/model.safetensors", os.unlink, "expected it, got no such file"),
        ("manifest.json", os.unlink, "expected a checkpoint of format 3, got one without"),
        ("model/unknown.safetensors", Path.touch, "not in the manifest"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    tmp_path, file: str, damage: Callable[[Path], None], message: str
):
    """The one before it is used. It stays where it is until the run comes to its step again."""
    store = open_store(tmp_path, keep=1)
    store.save(1, contents_of(1))
    store.save(5, contents_of(5))
    damage(tmp_path / "step-000005" / file)
    with pytest.raises(CheckpointError, match=f"{Path(file).name}.*{message}|{message}.*{file}"):
        verify_checkpoint(tmp_path / "step-000005", World())
    assert store.newest_intact() is None  # only the last one was kept

    store = open_store(tmp_path, keep=1)
    store.save(4, contents_of(4))
    assert store.newest_intact() == tmp_path / "step-000004"
    assert list(store.refused) == [tmp_path / "step-000005"]
    assert names(tmp_path) == ["model", "step-000004", "step-000005"]
    store.save(5, contents_of(6))
    assert store.newest_intact() == tmp_path / "step-000005"
    assert saved_weight(tmp_path / "step-000005")[0] == 6
    assert names(tmp_path) == ["model", "step-000005"]


def test_a_background_save_has_the_weights_of_its_call(tmp_path):
    store = open_store(tmp_path)
    weight = torch.ones(20_000_000)  # 80 MB: the next line comes before they are written
    saved = []
    store.save(1, contents_of(weight), in_background=True, when_saved=lambda: saved.append(1))
    weight.zero_()
    assert not saved
    store.finish(wait=True)
    assert saved == [1]
    read_tensors(tmp_path / "step-000001" / "model", {"weight": weight}, World())
    assert weight.eq(1).all()
    verify_checkpoint(tmp_path / "step-000001", World())


def save_until_killed(folder: str) -> None:
    """On each rank: damage, a full disk on rank 1, a background save, and a kill of rank 1."""
    world = start(DistConfig(timeout=60), "cpu")
    assert world.mesh is not None
    root = Path(folder)
    store = open_store(root, world=world)

    def distribute(tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, world.mesh, [Replicate(), Shard(0)])

    weight = distribute(torch.arange(300.0))
    for step in (1, 2):
        store.save(step, contents_of(weight))
    shard = "optimizer/shard-00002-model-00001-of-00001.safetensors"
    if world.is_main:
        flip_bit(root / "step-000002" / shard, -1)
    world.barrier()
    assert store.newest_intact() == root / "step-000001"
    assert f"step-000002: damaged: {shard}: expected" in store.refused[root / "step-000002"]

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    with pytest.raises(CheckpointError, match="could not write .*rank 1: .*File too large"):
        store.save(3, contents_of(weight))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    world.barrier()
    assert names(root) == ["model", "step-000001", "step-000002"]

    store.save(4, contents_of(weight), in_background=True)
    weight.zero_()
    while not all(world.gather((root / "step-000004").exists())):
        store.finish(wait=False)
    verify_checkpoint(root / "step-000004", world)
    read_tensors(root / "step-000004" / "model", {"weight": weight}, world)
    assert weight.full_tensor().equal(torch.arange(300.0))
    print("recovered", flush=True)

    if world.rank == 1:
        threading.Thread(target=kill_at, args=(root / ".writing-step-000005",)).start()
    store.save(5, contents_of(distribute(torch.ones(50_000_000))))


def kill_at(folder: Path) -> None:
    """Kill this process when it begins to write its shard."""
    while not list(folder.glob("model/shards/shard-00002*")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_failure_of_one_rank(tmp_path):
    """It is an error on all ranks, and no half-written checkpoint is left. A killed rank leaves
    the checkpoint before, which one process reads.
    """
    with pytest.raises(RanksFailed) as failure:
        run_ranks(save_until_killed, 2, str(tmp_path), timeout=60)
    assert failure.value.outputs == ["recovered\n"] * 2, failure.value
    assert (tmp_path / ".writing-step-000005").exists()
    store = open_store(tmp_path)
    assert store.newest_intact() == tmp_path / "step-000004"
    assert not store.refused
    assert saved_weight(tmp_path / "step-000004").equal(torch.arange(300.0))
    store.save(5, contents_of(5))
    assert names(tmp_path) == ["model", "step-000004", "step-000005"]


def test_every_random_generator_is_restored(tmp_path):
    def draw() -> tuple[float, float, list[float]]:
        return random.random(), numpy.random.rand(), torch.rand(3).tolist()

    torch.save(random_state(), tmp_path / "state.pt")
    expected = draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected
