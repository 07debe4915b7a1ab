"""Placeholder until the branch ckpt is merged."""

from __future__ import annotations

from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader

from srt_fast.distributed.world import World


def read_tensors(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    dcp.load(
        {name: t.detach() for name, t in tensors.items()},
        storage_reader=HuggingFaceStorageReader(str(folder)),
    )
