"""Loading a policy: from a folder, a .gguf file or a hub id, onto its device, with its kernels."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from srt_fast.config import ModelConfig
from srt_fast.distributed.world import ONE_PROCESS, World
from srt_fast.errors import CheckpointError, first_line
from srt_fast.model.attention import ATTENTION
from srt_fast.model.compilation import check_compiler, compile_blocks
from srt_fast.model.layer_kernels import apply_layer_kernels
from srt_fast.model.lora import (
    TEACHER,
    TRAINED,
    add_adapters,
    check_peft,
    is_adapter_folder,
    read_adapter_config,
    reset_adapters,
)
from srt_fast.model.lora_policy import LoRAPolicy
from srt_fast.model.policy import Policy, autocast_dtype
from srt_fast.model.quantized import check_quantization, quantize_layers
from srt_fast.model.sharded_loading import load_sharded


def pick_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda". Raises ValueError for "cuda" without a device."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ValueError(
            "model.device: expected a CUDA device for 'cuda', got none "
            "(torch.cuda.is_available() is False)"
        )
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    return torch.device(name)


def load_policy(
    path: str, config: ModelConfig, world: World = ONE_PROCESS, *, share_prompts: bool = False
) -> Policy:
    """Load a model with its tokenizer. With several ranks: sharded, each rank reads its part.

    path: a Hugging Face folder, a .gguf file or a hub id. Only safetensors are read from folders
    and from the hub. An adapter's folder, which peft or a run has written, is loaded with the model
    that it names. Its own settings count, not config.lora, but for quantize. share_prompts: see
    Policy.

    Raises ValueError for a missing file or folder, a folder without config.json, a GGUF file
    without the gguf package, a model that the hub or transformers refuses, an architecture that
    cannot pack (Policy), and for config.kernels "liger", config.compile and config.lora where that
    is not possible.
    """
    if is_adapter_folder(path):
        folder = Path(path).expanduser()
        base, lora = read_adapter_config(folder)
        lora = replace(lora, quantize=config.lora.quantize)  # peft's settings do not say it
        policy = _load(
            base, replace(config, lora=lora), world, [TRAINED], share_prompts=share_prompts
        )
        try:
            policy.load(folder)
        except CheckpointError as error:
            raise ValueError(
                f"model.path: expected an adapter of plain LoRA, got {error}"
            ) from None
        return policy
    adapters = [TRAINED] if config.lora.r else []
    return _load(path, config, world, adapters, share_prompts=share_prompts)


def load_adapted(
    path: str,
    config: ModelConfig,
    world: World = ONE_PROCESS,
    *,
    with_teacher: bool = False,
    share_prompts: bool = False,
) -> LoRAPolicy:
    """As load_policy, of a whole model with new adapters (config.lora).

    with_teacher: with a second adapter, for a moving average.
    """
    adapters = [TRAINED, TEACHER] if with_teacher else [TRAINED]
    policy = _load(path, config, world, adapters, share_prompts=share_prompts)
    assert isinstance(policy, LoRAPolicy)
    return policy


def _load(
    path: str, config: ModelConfig, world: World, adapters: list[str], *, share_prompts: bool
) -> Policy:
    source, arguments = _pretrained_arguments(path)
    device = pick_device(config.device)
    if adapters:
        check_peft()
    quantizes = config.lora.quantize != "none"
    if quantizes:
        if not adapters:
            raise ValueError(
                "model.lora.r: expected at least 1 with model.lora.quantize="
                f"{config.lora.quantize!r}, got 0"
            )
        check_quantization(device)
        if world.is_distributed or config.compile:
            got = "several ranks" if world.is_distributed else "model.compile"
            raise ValueError(f"model.lora.quantize: expected 'none' with {got}, got 'nf4'")
    if config.compile:
        check_compiler("model.compile", device)

    def add_parts(model: PreTrainedModel) -> None:
        apply_layer_kernels(model, config.kernels, device)
        if adapters:
            add_adapters(model, config.lora, path, adapters)

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            trust_remote_code=config.trust_remote_code,
            **_only_gguf_file(arguments),
        )
        if world.is_distributed:
            model = load_sharded(source, config, world, device, add_parts)
        else:
            model = _load_whole(source, config, device, arguments, quantizes=quantizes)
            add_parts(model)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if str(error).startswith("model."):  # it names the setting already
            raise
        raise ValueError(f"model.path: could not load {path!r}: {first_line(error)}") from error
    reset_adapters(model, config.lora.seed)
    _check_tokenizer(tokenizer, path)
    kind = LoRAPolicy if adapters else Policy
    policy = kind(model, tokenizer, config, world=world, device=device, share_prompts=share_prompts)
    # The policy has checked the architecture, with passes that need not be compiled.
    if config.compile:
        compile_blocks(model)
    return policy


def _load_whole(
    source: str,
    config: ModelConfig,
    device: torch.device,
    arguments: dict[str, Any],
    *,
    quantizes: bool,
) -> PreTrainedModel:
    model: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=getattr(torch, config.dtype),
        trust_remote_code=config.trust_remote_code,
        attn_implementation=ATTENTION,
        **arguments,
    )
    if quantizes:
        quantize_layers(model, device, autocast_dtype(device, config) or model.dtype)
    return model.to(device)


def load_reference(
    path: str, config: ModelConfig, world: World = ONE_PROCESS, *, share_prompts: bool = False
) -> Policy:
    """A frozen policy: the reference of a KL term, or a teacher."""
    reference = load_policy(path, config, world, share_prompts=share_prompts)
    reference.model.requires_grad_(False)
    reference.model.eval()
    return reference


def check_path(path: str) -> None:
    """Raise ValueError for a path that cannot be a model to train. Loads nothing."""
    if is_adapter_folder(path):
        raise ValueError(
            f"model.path: expected a whole model, got {path!r}, an adapter: srt-fast export writes "
            "it as a whole model"
        )
    _pretrained_arguments(path)


def quiet_transformers() -> None:
    """Keep transformers' progress bars and log messages off the terminal, where ours are drawn."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _pretrained_arguments(path: str) -> tuple[str, dict[str, Any]]:
    """What from_pretrained takes for a path: folder or hub id, and keyword arguments."""
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        return str(local.parent), _gguf_arguments(path, local)
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise ValueError(
                "model.path: expected a Hugging Face model folder with config.json, "
                f"got {path!r} without one"
            )
        return str(local), {"use_safetensors": True}
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if local.exists() or looks_local:
        problem = "is a file" if local.exists() else "does not exist"
        raise ValueError(
            "model.path: expected a model folder, a .gguf file or a hub id, "
            f"got {path!r}, which {problem}"
        )
    return path, {"use_safetensors": True}


def _gguf_arguments(path: str, local: Path) -> dict[str, Any]:
    if not local.is_file():
        raise ValueError(f"model.path: expected a GGUF file, got {path!r}, which does not exist")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            f"model.path: expected the gguf package to read {local.name}, got none: "
            "pip install gguf"
        )
    arguments: dict[str, Any] = {"gguf_file": local.name}
    if hasattr(transformers, "GgufConfig"):
        # Newer versions of transformers keep weights in GGUF's blocks without this.
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return arguments


def _only_gguf_file(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a tokenizer takes."""
    return {name: value for name, value in arguments.items() if name == "gguf_file"}


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"model.path: expected a tokenizer with an end-of-sequence token, got none in {path!r}"
        )
