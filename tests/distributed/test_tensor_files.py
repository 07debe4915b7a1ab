"""Checkpoints of one to four ranks: what one world writes, every other world reads.

The weights and Adam's state are made element by element, so that their bits do not depend on the
number of ranks.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from srt_fast.distributed.optimizer_state import (
    optimizer_settings,
    optimizer_tensors,
    read_optimizer,
)
from srt_fast.distributed.tensor_files import read_tensors, write_tensors
from srt_fast.distributed.world import World, digest
from support.models import SMALL, make_model
from support.ranks import run_ranks

FILE_BYTES = 20_000  # several files


def sharded_model(mesh: DeviceMesh | None) -> nn.Module:
    """A random tied model, sharded over the mesh."""
    model = make_model(Qwen2Config(**SMALL, tie_word_embeddings=True))
    if mesh is not None:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One update. The last parameter, the final norm, gets no gradient: it has no state."""
    for parameter in list(model.parameters())[:-1]:
        parameter.grad = parameter.detach() * 0.5
    optimizer.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())  # tied ones once


def edge_cases(mesh: DeviceMesh | None, fill: bool = True) -> dict[str, Tensor]:
    """Shapes and dtypes at which a format may fail. fill: else zeros."""
    tensors = {
        "empty": torch.empty(0, 3),
        "one row": torch.arange(1.0, 4.0)[None],
        "uneven": torch.arange(1.0, 21.0).view(5, 4),
        "bfloat16": torch.arange(1, 15).view(7, 2).bfloat16(),
        "scalar": torch.tensor(3.0),
        "integers": torch.arange(1, 6),
        "transposed": torch.arange(1.0, 25.0).view(4, 6).T,
    }
    if not fill:
        tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    if mesh is None:
        return tensors
    whole = ("scalar", "integers")  # the same on all ranks
    sharded = {
        name: distribute_tensor(tensor, mesh, [Replicate(), Shard(0)])
        for name, tensor in tensors.items()
        if name not in whole
    }
    # A local shard that is not contiguous either.
    columns = distribute_tensor(tensors["transposed"].T.contiguous(), mesh, [Replicate(), Shard(1)])
    sharded["transposed"] = columns.t()
    return sharded | {name: tensors[name] for name in whole}


def whole_digest(*parts: dict[str, Tensor]) -> str:
    """A hash of names, dtypes and values of whole tensors."""
    values = []
    for part in parts:
        for name, tensor in sorted(part.items()):
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            values += [name, tensor.dtype, tensor.shape, whole.detach().reshape(-1)]
    return digest(*values)


def save(folder: Path, world: World) -> str:
    """Write a model, its optimizer and the edge cases. Returns their digest."""
    model = sharded_model(world.mesh)
    optimizer = make_optimizer(model)
    for _ in range(2):
        update(model, optimizer)
    edges = edge_cases(world.mesh)
    state = optimizer_tensors(model, optimizer)
    settings = optimizer_settings(model, optimizer)
    write_tensors(folder / "model", weights(model), world, merge=True, file_bytes=FILE_BYTES)
    write_tensors(folder / "optimizer", state, world, merge=False, file_bytes=FILE_BYTES)
    write_tensors(folder / "edges", edges, world, merge=True, file_bytes=64)
    if world.is_main:
        torch.save(settings, folder / "settings.pt")
    return whole_digest(weights(model), state, edges)


def read(folder: Path, world: World) -> str:
    """Read what `save` wrote into a model and an optimizer. Returns their digest.

    Then both can be updated.
    """
    model = sharded_model(world.mesh)
    optimizer = make_optimizer(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    read_tensors(folder / "model", weights(model), world)
    settings = torch.load(folder / "settings.pt", weights_only=True)
    optimizer.load_state_dict(
        read_optimizer(folder / "optimizer", settings, model, optimizer, world)
    )
    edges = edge_cases(world.mesh, fill=False)
    read_tensors(folder / "edges", edges, world)
    result = whole_digest(weights(model), optimizer_tensors(model, optimizer), edges)
    update(model, optimizer)
    return result


def first_ranks(size: int, replicas: int) -> World | None:
    """A world of the first ranks. All ranks call it. None on the other ranks."""
    ranks = torch.arange(size).view(replicas, -1)
    mesh = DeviceMesh("cpu", ranks, mesh_dim_names=("replicate", "shard"))
    control = dist.new_group(list(range(size)))
    if dist.get_rank() >= size:
        return None
    return World(rank=dist.get_rank(), size=size, mesh=mesh, control=control)


def save_and_read(folder: str, worlds: list) -> None:
    """On each rank: in each world, save under its name, and read from itself and its sources.

    Prints the digests.
    """
    dist.init_process_group("gloo")
    digests = {}
    for name, size, replicas, sources in worlds:
        if world := first_ranks(size, replicas):
            digests[name] = save(Path(folder) / name, world)
            for source in [name, *sources]:
                digests[f"{source} in {name}"] = read(Path(folder) / source, world)
        dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(digests))


def test_every_world_reads_what_every_world_writes(tmp_path):
    """1 to 2, 3 and 4 ranks (2 x 2 HSDP), 2 to 3, 3 to 4, and each of them to 1."""
    expected = save(tmp_path / "one", World())
    worlds = [("two", 2, 1, ["one"]), ("three", 3, 1, ["one", "two"]), ("hsdp", 4, 2, ["three"])]
    outputs = run_ranks(save_and_read, 4, str(tmp_path), worlds, timeout=300)
    digests = [json.loads(output) for output in outputs]
    assert [len(values) for values in digests] == [3 + 4 + 3, 3 + 4 + 3, 4 + 3, 3]
    for values in digests:
        assert values == dict.fromkeys(values, expected)
    for name, *_ in [("one",), *worlds]:
        assert read(tmp_path / name, World()) == expected, name
        assert_is_hugging_face(tmp_path / name / "model", tmp_path / "one" / "model")


def assert_is_hugging_face(folder: Path, expected: Path) -> None:
    """The folder's weights load with from_pretrained, and its files are those of one process."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in expected.iterdir()
    )
    Qwen2Config(**SMALL, tie_word_embeddings=True).save_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert whole_digest(weights(model)) != whole_digest(weights(sharded_model(None)))
    (folder / "config.json").unlink()
    zeros = {name: torch.zeros_like(weight) for name, weight in weights(model).items()}
    read_tensors(expected, zeros, World())
    assert whole_digest(weights(model)) == whole_digest(zeros)
