"""Loading a model onto several ranks. No rank holds more of it than its part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from srt_fast.config import ModelConfig
from srt_fast.distributed.sharding import run_in_forward, shard
from srt_fast.distributed.tensor_files import read_tensors
from srt_fast.distributed.world import World
from srt_fast.errors import CheckpointError
from srt_fast.model.attention import ATTENTION
from srt_fast.model.lora import base_weights
from srt_fast.model.policy import autocast_dtype, saved_tensors


def load_sharded(
    source: str,
    config: ModelConfig,
    world: World,
    device: torch.device,
    add_parts: Callable[[PreTrainedModel], None],
) -> PreTrainedModel:
    """A sharded model. Collective.

    The model is made without memory (on the meta device), sharded, and then each rank reads its
    part of each weight.

    source: a folder with safetensors or a hub id. add_parts: called before the model is sharded.
        The values of adapters that it adds are not set.

    Raises ValueError for a GGUF file's folder, and if the files lack one of the model's weights. A
    model whose files have another layout must be loaded and saved by transformers first.
    """
    folder = _folder(source)
    if not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"model.path: expected safetensors in {folder} to load them on several ranks, got none"
        )
    model = _make_without_memory(folder, config)
    add_parts(model)
    shard(model, world, autocast=autocast_dtype(device, config) is not None)
    model.to_empty(device="cpu" if world.settings.cpu_offload else device)
    try:
        read_tensors(folder, base_weights(saved_tensors(model)), world, allow_more=True)
    except CheckpointError as error:
        raise ValueError(
            "model.path: expected the weights of the model under their names on several ranks "
            f"(else load and save it with transformers first), got: {error}"
        ) from None
    _fill_other_buffers(model, device)
    with torch.no_grad():
        run_in_forward(model, lambda: None)  # FSDP finds its units in the root's first forward
    return model


def _folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    return Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json"]))


def _make_without_memory(folder: Path, config: ModelConfig) -> Any:
    model_config = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            model_config,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
            attn_implementation=ATTENTION,
        )
    model.tie_weights()
    return model


def _fill_other_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that no file has, such as the frequencies of rotary embeddings.

    transformers does it for every model that it loads: `initialize_weights` leaves alone what is
    marked as initialized.
    """
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()
    for module in model.modules():  # with dist.cpu_offload they are on the CPU
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
