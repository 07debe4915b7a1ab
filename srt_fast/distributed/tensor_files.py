"""Tensors in safetensors files: written by any number of ranks, read by any other number.

torch.distributed.checkpoint writes and reads, in its format for Hugging Face: its default format is
pickled. Its own merging of shards is not used: it writes 0-dim tensors as zeros and refuses
integers (torch 2.13, _consolidate_hf_safetensors.py).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from srt_fast.distributed.world import World, lost_ranks_are_errors
from srt_fast.errors import CheckpointError, first_line

FILE_BYTES = 5_000_000_000
"""Largest size of a file. A larger tensor gets a file of its own. A rank that merges a file holds
it in host memory."""
INDEX_SUFFIX = ".safetensors.index.json"


class TensorDescription(NamedTuple):
    """A tensor in a file: shape and dtype of the whole tensor."""

    shape: torch.Size
    dtype: torch.dtype


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    world: World,
    *,
    merge: bool,
    file_bytes: int = FILE_BYTES,
    file: str = "model",
) -> None:
    """Write tensors into safetensors files. All ranks call it with the same names.

    tensors: DTensors, of which each rank writes its shard, or tensors that are the same on all
        ranks, which one rank writes. Two names of one weight are an error.
    merge: whole tensors in the files, which from_pretrained reads. False: with several ranks, each
        rank's files hold its shards. That writes half as many bytes.
    file: name of the files, without numbers and suffix.

    Raises CheckpointError on all ranks if one of them could not write.
    """
    if not tensors:
        return
    files = _split(tensors, file, file_bytes)
    detached = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    _make_folder(folder, world)
    if not world.is_distributed:
        with _checkpoint_errors(folder):
            for path, names in files.items():
                _save({name: detached[name] for name in names}, folder / path)
            _write_index(folder / f"{file}{INDEX_SUFFIX}", tensors, files)
        return
    shards = folder / "shards" if merge else folder
    file_numbers = {
        name: number for number, names in enumerate(files.values(), 1) for name in names
    }
    writer = HuggingFaceStorageWriter(
        str(shards), fqn_to_index_mapping=file_numbers, save_distributed=True
    )
    with lost_ranks_are_errors(), _checkpoint_errors(folder):
        save(detached, storage_writer=writer, process_group=world.control)
    if merge:
        _merge(shards, folder, tensors, files, world)
        with world.agreement(), _checkpoint_errors(folder):
            if world.is_main:
                shutil.rmtree(shards)
                _write_index(folder / f"{file}{INDEX_SUFFIX}", tensors, files)


def read_tensors(
    folder: Path, tensors: Mapping[str, Tensor], world: World, *, allow_more: bool = False
) -> None:
    """Copy the tensors that write_tensors wrote into these, in place. All ranks call it.

    tensors: DTensors or plain tensors of the same names and shapes, on any device. A rank reads
    only its shards of DTensors. The dtype may differ.
    allow_more: the files may hold more tensors.

    Raises CheckpointError on all ranks for files that are missing, damaged or of other tensors.
    """
    with world.agreement():
        descriptions = describe_tensors(folder)
        if missing := tensors.keys() - descriptions.keys():
            raise CheckpointError(f"{folder}: expected a tensor {min(missing)!r}, got none")
        unexpected = descriptions.keys() - tensors.keys()
        if unexpected and not allow_more:
            raise CheckpointError(
                f"{folder}: expected no tensor {min(unexpected)!r}, got one of shape "
                f"{list(descriptions[min(unexpected)].shape)}"
            )
    if not tensors:
        return
    detached = {name: tensor.detach() for name, tensor in tensors.items()}
    reader = HuggingFaceStorageReader(str(folder))
    if not world.is_distributed:
        with _checkpoint_errors(folder):
            _load_alone(detached, reader)
        return
    with lost_ranks_are_errors(), _checkpoint_errors(folder):
        load(detached, storage_reader=reader, process_group=world.control)


def describe_tensors(folder: Path) -> dict[str, TensorDescription]:
    """The tensors in a folder's files, by name. Local: reads only the files' headers.

    Raises CheckpointError for a damaged file. A missing folder has no tensors.
    """
    if not folder.is_dir():
        return {}
    with _checkpoint_errors(folder):
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    descriptions = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        descriptions[name] = TensorDescription(tensor.size, tensor.properties.dtype)
    return descriptions


def _make_folder(folder: Path, world: World) -> None:
    with world.agreement(), _checkpoint_errors(folder):
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
    with world.agreement():
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder}: expected a folder that all ranks share, got none on rank {world.rank}"
            )


def _split(tensors: Mapping[str, Tensor], file: str, file_bytes: int) -> dict[str, list[str]]:
    """The names of the tensors of each file, under the names that Hugging Face gives to files."""
    # On the meta device: sizes of DTensors are those of whole tensors, the same on all ranks.
    shapes = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in tensors.items()
    }
    split = split_torch_state_dict_into_shards(
        shapes, filename_pattern=f"{file}{{suffix}}.safetensors", max_shard_size=file_bytes
    )
    return split.filename_to_tensors


def _merge(
    shards: Path,
    folder: Path,
    tensors: Mapping[str, Tensor],
    files: dict[str, list[str]],
    world: World,
) -> None:
    """Files of whole tensors from files of shards. Each rank writes its share of the files."""
    with world.agreement(), _checkpoint_errors(folder):
        for file, names in list(files.items())[world.rank :: world.size]:
            whole = {
                name: torch.empty(tensors[name].shape, dtype=tensors[name].dtype) for name in names
            }
            reader = HuggingFaceStorageReader(str(shards))
            _load_alone(dict(whole), reader)
            _save(whole, folder / file)


def _load_alone(tensors: dict[str, Tensor], reader: HuggingFaceStorageReader) -> None:
    """Read tensors on this rank, without the others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader, no_dist=True)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


def _write_index(path: Path, tensors: Mapping[str, Tensor], files: dict[str, list[str]]) -> None:
    if len(files) == 1:
        return
    total_size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n")


@contextlib.contextmanager
def _checkpoint_errors(folder: Path) -> Iterator[None]:
    """Errors of reading and writing become a CheckpointError.

    torch.distributed.checkpoint collects the errors of all ranks into a CheckpointException. It is
    a BaseException.
    """
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise CheckpointError(f"{folder}: rank {rank}: {first_line(cause)}") from cause
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {first_line(error)}") from error
