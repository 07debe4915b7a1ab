"""TODO."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_fast.config import ModelConfig
from srt_fast.model.attention import ATTENTION
from srt_fast.model.policy import Policy


def pick_device(name: str) -> torch.device:
    """ "auto", "cpu" or "cuda" to a device. ValueError for "cuda" without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "model.device: expected a CUDA device for 'cuda', got none (torch.cuda.is_available() is False)"
        )
    return torch.device(
        "cuda"
        if name == "auto" and torch.cuda.is_available()
        else "cpu"
        if name == "auto"
        else name
    )


def load_policy(path: str, config: ModelConfig) -> Policy:
    """Load a local Hugging Face folder, a .gguf file or a hub id (safetensors only) with its tokenizer.

    Raises ValueError for a missing folder, a folder without config.json, a GGUF file without the gguf package, or a
    model that the hub or transformers refuses.
    """
    source, kwargs = _source(path)
    trust = config.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust, **_tokenizer_kwargs(kwargs)
        )
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=trust,
            attn_implementation=ATTENTION,
            **({} if "gguf_file" in kwargs else {"use_safetensors": True}),
            **kwargs,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"model.path: could not load {path!r}: {(str(error).strip() or repr(error)).splitlines()[0]}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"model.path: expected a tokenizer with an end-of-sequence token, got none in {path!r}"
        )
    return Policy(model.to(pick_device(config.device)), tokenizer, config)


def load_reference(path: str, config: ModelConfig) -> Policy:
    """A frozen second copy of the starting model, for KL terms."""
    reference = load_policy(path, config)
    reference.model.requires_grad_(False)
    reference.model.eval()
    return reference


def quiet_transformers() -> None:
    """Keep transformers' own progress bars and warnings off the terminal that our progress is drawn on."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings(
        "ignore", "`gradient_checkpointing_enable` is deprecated", FutureWarning
    )


def check_path(path: str) -> None:
    """Raise ValueError at once for a path that cannot be a model, before anything loads."""
    _source(path)


def _source(path: str) -> tuple[str, dict]:
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise ValueError(
                f"model.path: expected a GGUF file, got {path!r}, which does not exist"
            )
        if importlib.util.find_spec("gguf") is None:
            raise ValueError(
                f"model.path: reading {local.name} needs the gguf package, which is not installed: pip install gguf"
            )
        kwargs = {"gguf_file": local.name}
        if hasattr(
            transformers, "GgufConfig"
        ):  # newer transformers leave weights in GGUF blocks unless told
            kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
        return str(local.parent), kwargs
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise ValueError(
                f"model.path: expected a Hugging Face model folder with config.json, got {path!r} without one"
            )
        return str(local), {}
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if local.exists() or looks_local:
        raise ValueError(
            f"model.path: expected a model folder, a .gguf file or a hub id, got {path!r}, "
            + ("which is a file" if local.exists() else "which does not exist")
        )
    return path, {}


def _tokenizer_kwargs(kwargs: dict) -> dict:
    return {key: value for key, value in kwargs.items() if key == "gguf_file"}
