"""8-bit AdamW on two ranks: its steps, and its state in a checkpoint."""

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
from srt_fast.optimizer import make_optimizer
from support.optimizer import state_bits
from support.ranks import run_ranks

SETTINGS = TrainConfig(lr=1e-3, optimizer="adamw_8bit")
SIZE = 128  # a rank has 64 rows: 8192 values, enough for 8 bits


def make_matrices() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, SIZE, bias=False), nn.Linear(SIZE, SIZE, bias=False))


def train(model: nn.Module, world: World) -> torch.optim.Optimizer:
    """Two steps with random gradients, the same for a model that is whole."""
    optimizer = make_optimizer(model.parameters(), SETTINGS)
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


def optimizer_task(folder: str) -> None:
    world = start(DistConfig())
    whole, sharded = make_matrices(), make_matrices()
    fully_shard(sharded, mesh=world.mesh)
    train(whole, world)
    optimizer = train(sharded, world)
    # A rank's rows are whole blocks of 256: sharding changes no block. What differs is rounding of
    # the two compiled steps, each of a few operations.
    for name, weight in whole.named_parameters():
        difference = full_tensor(sharded.get_parameter(name).detach()) - weight
        assert difference.abs().max() <= 2**-22 * weight.abs().max(), name

    saved = optimizer_tensors(sharded, optimizer)
    write_tensors(Path(folder), saved, world, merge=False)
    settings = optimizer_settings(sharded, optimizer)
    resumed = {}
    for name, model, readers in (("two", sharded, world), ("one", whole, ONE_PROCESS)):
        resumed[name] = make_optimizer(model.parameters(), SETTINGS)
        state = read_optimizer(Path(folder), settings, model, resumed[name], readers)
        resumed[name].load_state_dict(state)
    bits = state_bits(resumed["two"])
    assert any("codes" in place for place in bits)
    assert bits == state_bits(optimizer)
    for name, tensor in optimizer_tensors(whole, resumed["one"]).items():
        assert tensor.equal(full_tensor(saved[name])), name
    world.close()


def test_8_bit_state_on_two_ranks(tmp_path):
    pytest.importorskip("torchao")
    run_ranks(optimizer_task, 2, str(tmp_path / "optimizer"), timeout=200)
