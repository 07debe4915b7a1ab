"""Low-rank adapters (LoRA, arXiv 2106.09685) in a model, by peft.

A layer with weight W becomes W + alpha / r * B A, with A [r, inputs] and B [outputs, r]. W is
frozen. peft puts its layers in place of the model's own. The model stays one of transformers, in
which layer.weight is now layer.base_layer.weight.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srt_fast.config import LoRAConfig
from srt_fast.distributed.sharding import copy_whole
from srt_fast.model.quantized import is_quantized, whole_weight

TRAINED = "default"
"""peft's name of the adapter that is trained."""
TEACHER = "teacher"
"""peft's name of the adapter of a moving average."""
CONFIG_FILE = "adapter_config.json"
"""It makes a folder an adapter's, for peft and transformers too."""


def check_peft() -> None:
    """Raise ValueError if peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            "model.lora: expected the package peft, got none: pip install 'srt-fast[lora]'"
        )


def is_adapter_folder(path: str) -> bool:
    """Whether a path is a folder of an adapter, without the model that it belongs to."""
    return (Path(path).expanduser() / CONFIG_FILE).is_file()


def read_adapter_config(folder: Path) -> tuple[str, LoRAConfig]:
    """The model that an adapter belongs to, a path or hub id, and the adapter's settings.

    Raises ValueError for an adapter that is no plain LoRA.
    """
    settings = json.loads((folder / CONFIG_FILE).read_text())
    kind = settings.get("peft_type")
    scaling = [name for name in ("use_rslora", "alpha_pattern") if settings.get(name)]
    if kind != "LORA" or scaling:
        got = scaling[0] if scaling else kind
        raise ValueError(f"model.path: expected an adapter of plain LoRA, got {got} in {folder}")
    targets = settings["target_modules"]
    lora = LoRAConfig(
        r=settings["r"],
        alpha=settings["lora_alpha"],
        target=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
    )
    return settings["base_model_name_or_path"], lora


def add_adapters(
    model: nn.Module, config: LoRAConfig, base: str, names: Sequence[str] = (TRAINED,)
) -> None:
    """Freeze a model, and put adapters of these names into it. The first is trained and active.

    Adapters are float32 whatever the model is. Their values are peft's: reset_adapters sets them.

    base: the model's path or hub id, for adapter_config.json. Raises ValueError if peft is not
    installed, and for a target that is no linear layer or a head that is tied to the embeddings.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    path = Path(base).expanduser()
    targets: Any = list(config.target)
    if config.target == ("all-linear",):
        targets = "all-linear"
    for name in names:
        settings = LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
            target_modules=targets,
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(path.resolve()) if path.exists() else base,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a second adapter, and of GPT-2's layers
                inject_adapter_in_model(settings, model, name)
        except ValueError as error:  # peft's, for names that no module has
            raise ValueError(f"model.lora.target: {error}") from error
        targets = settings.target_modules  # peft has named all linear layers
    _check_targets(model, config.target)
    for layer in adapted_layers(model).values():
        layer.set_adapter(names[0])
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()


def reset_adapters(model: nn.Module, seed: int) -> None:
    """Set A as peft does, uniform in +-1/sqrt(inputs), and B to 0. All adapters alike.

    The values do not depend on the number of ranks.
    """
    for name in adapter_names(model):
        generator = torch.Generator().manual_seed(seed)
        for layer in adapted_layers(model).values():
            narrow, wide = layer.lora_A[name].weight, layer.lora_B[name].weight
            bound = 1 / math.sqrt(narrow.shape[1])
            values = torch.empty(narrow.shape).uniform_(-bound, bound, generator=generator)
            copy_whole(values, narrow)
            copy_whole(torch.zeros(wide.shape), wide)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """peft's layers by the names of the layers that they replaced."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def adapter_names(model: nn.Module) -> list[str]:
    """The names of the adapters in a model. Empty for a model without."""
    layers = list(adapted_layers(model).values())
    return list(layers[0].lora_A) if layers else []


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's A or B."""
    return ".lora_A." in name or ".lora_B." in name


def adapter_weights(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """An adapter's A and B by their names in a peft folder, not copied."""
    return {
        f"base_model.model.{name.replace(f'.{adapter}.', '.')}": tensor
        for name, tensor in model.named_parameters()
        if is_adapter(name) and f".{adapter}." in name
    }


def base_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their names in a model without adapters. Adapters are left out."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in weights.items()
        if not is_adapter(name)
    }


def merged_weight(layer: Any, adapter: str) -> Tensor:
    """W + alpha / r * B A of a peft layer, in W's dtype. Gradients reach A, B and W, but for a W in
    4 bits.
    """
    weight = whole_weight(layer.get_base_layer())
    with torch.autocast(weight.device.type, enabled=False):
        change = layer.get_delta_weight(adapter)
    return (weight + change).to(weight.dtype)


def head_weight(head: Any) -> Tensor:
    """[V, H] weight of an LM head, with the adapters that are active.

    Without adapters it is the head's own, not copied. With them, or in 4 bits, it is a copy in each
    call.
    """
    if not hasattr(head, "lora_A") or head.disable_adapters or head.merged:
        return whole_weight(head)
    adapters = [name for name in head.active_adapters if name in head.lora_A]
    if not adapters:
        return whole_weight(head)
    if len(adapters) > 1 or head.lora_variant:
        raise ValueError(
            "LM head: expected at most one active adapter of plain LoRA, got "
            f"{', '.join(adapters)}{' of a variant' if head.lora_variant else ''}"
        )
    return merged_weight(head, adapters[0])


@contextlib.contextmanager
def active_adapter(model: nn.Module, adapter: str | None) -> Iterator[None]:
    """Inside, passes without gradient run with this adapter, or with none."""
    layers = adapted_layers(model).values()
    for layer in layers:
        if adapter is None:
            layer.enable_adapters(False)
        else:
            layer.set_adapter(adapter, inference_mode=True)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_adapter(TRAINED)
            layer.enable_adapters(True)


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    from peft.tuners.lora import Linear

    layers = adapted_layers(model)
    for name, layer in layers.items():
        if not isinstance(layer, Linear) and not is_quantized(layer.get_base_layer()):
            kind = type(layer.get_base_layer()).__name__
            raise ValueError(f"model.lora.target: expected linear layers, got {name}, a {kind}")
    for target in targets:
        if target != "all-linear" and not any(f".{name}".endswith(f".{target}") for name in layers):
            raise ValueError(
                f"model.lora.target: expected names of the model's layers, got {target!r}, which "
                "none has"
            )
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    if hasattr(head, "lora_A") and head.weight is embedding.weight:
        raise ValueError(
            "model.lora.target: expected an LM head of its own for an adapter on it, got one whose "
            "weight is tied to the embeddings"
        )
