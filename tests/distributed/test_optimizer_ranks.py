"""8-bit AdamW and master weights on two ranks: their steps, and their state in a checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from srt_fast.config import DistConfig, TrainConfig
from srt_fast.distributed.launch import start
from srt_fast.distributed.optimizer_state import (
    optimizer_settings,
    optimizer_tensors,
    read_optimizer,
)
from srt_fast.distributed.sharding import full_tensor, local_part
from srt_fast.distributed.tensor_files import write_tensors
from srt_fast.distributed.world import ONE_PROCESS, World
from srt_fast.optimizer import clip_gradients, make_optimizer
from support.optimizer import state_bits
from support.ranks import run_ranks

SIZE = 128  # a rank has 64 rows: 8192 values, enough for 8 bits


def make_matrices(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(SIZE, SIZE, bias=False) for _ in range(2)]
    return nn.Sequential(*layers).to(dtype)


def train(model: nn.Module, world: World, settings: TrainConfig) -> torch.optim.Optimizer:
    """Two steps with random gradients, the same for a model that is whole."""
    optimizer = make_optimizer(model.parameters(), settings)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for weight in model.parameters():
            gradient = torch.randn(SIZE, SIZE, generator=generator)
            weight.grad = torch.zeros_like(weight)
            rows = len(local_part(weight))
            first = rows * world.rank if rows < SIZE else 0
            local_part(weight.grad).copy_(gradient[first : first + rows])
        optimizer.step()
    return optimizer


def optimizer_task(folder: str, kind: str, dtype_name: str, part: str) -> None:
    world = start(DistConfig())
    train_config = TrainConfig(lr=1e-3, optimizer=kind)
    dtype = getattr(torch, dtype_name)
    whole, sharded = make_matrices(dtype), make_matrices(dtype)
    fully_shard(sharded, mesh=world.mesh)
    whole_optimizer = train(whole, world, train_config)
    optimizer = train(sharded, world, train_config)
    saved = optimizer_tensors(sharded, optimizer)
    # A rank's rows are whole blocks of 256: sharding changes no block. What differs is rounding of
    # the two steps, each of a few operations.
    expected = optimizer_tensors(whole, whole_optimizer)
    for name, weight in whole.named_parameters():
        actual = full_tensor(sharded.get_parameter(name).detach())
        if part == "master":
            rounded, actual = actual, full_tensor(saved[f"{name}.master"])
            assert rounded.equal(actual.bfloat16()), name
            weight = expected[f"{name}.master"]
        assert (actual - weight).abs().max() <= 2**-22 * weight.abs().max(), name

    write_tensors(Path(folder), saved, world, merge=False)
    settings = optimizer_settings(sharded, optimizer)
    resumed = {}
    for name, model, readers in (("two", sharded, world), ("one", whole, ONE_PROCESS)):
        resumed[name] = make_optimizer(model.parameters(), train_config)
        state = read_optimizer(Path(folder), settings, model, resumed[name], readers)
        resumed[name].load_state_dict(state)
    bits = state_bits(resumed["two"])
    assert any(part in place for place in bits)
    assert bits == state_bits(optimizer)
    for name, tensor in optimizer_tensors(whole, resumed["one"]).items():
        assert tensor.equal(full_tensor(saved[name])), name

    if world.rank == 1:  # both ranks name it
        local_part(sharded[1].weight.grad)[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^gradient of 1\.weight: expected finite values"):
        clip_gradients(sharded, 1.0, world)
    world.close()


@pytest.mark.parametrize(
    ("kind", "dtype", "part"),
    [("adamw_8bit", "float32", "codes"), ("adamw_fused", "bfloat16", "master")],
)
def test_state_on_two_ranks(kind, dtype, part, tmp_path):
    if kind == "adamw_8bit":
        pytest.importorskip("torchao")
    run_ranks(optimizer_task, 2, str(tmp_path / "optimizer"), kind, dtype, part, timeout=200)
