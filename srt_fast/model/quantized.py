"""Frozen weights in 4 bits under adapters (QLoRA, arXiv 2305.14314), by bitsandbytes.

Each linear layer of the body holds its weight as NF4, in blocks of 64 with a scale each. The
embeddings, the norms and the LM head stay as they are: the loss reads the head's weight itself.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

DEVICES = ("cuda", "cpu")
"""Where bitsandbytes multiplies by 4-bit weights."""


def check_quantization(device: torch.device) -> None:
    """Raise ValueError if bitsandbytes is not installed, or the device is none of DEVICES."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "model.lora.quantize: expected the package bitsandbytes, got none: "
            "pip install 'srt-fast[qlora]'"
        )
    if device.type not in DEVICES:
        raise ValueError(
            f"model.lora.quantize: expected a device of {' or '.join(DEVICES)}, got {device.type}"
        )


def quantize_layers(model: Any, device: torch.device, compute_dtype: torch.dtype) -> None:
    """Put 4-bit layers in place of all linear layers but the LM head. They are on the device.

    compute_dtype: of the products. Raises ValueError for a model without such layers.
    """
    head = model.get_output_embeddings()
    layers = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear and child is not head
    ]
    if not layers:
        raise ValueError(
            "model.lora.quantize: expected linear layers in the model's body, got none in "
            f"{type(model).__name__}"
        )
    for module, name, child in layers:
        setattr(module, name, _quantized(child, device, compute_dtype))
    model.is_loaded_in_4bit = True  # peft looks here


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer holds its weight in 4 bits."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


def whole_weight(layer: Any) -> Tensor:
    """[outputs, inputs] weight of a linear layer. Of a 4-bit layer a copy, else the layer's own."""
    if not is_quantized(layer):
        return layer.weight
    return _bitsandbytes().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def _bitsandbytes() -> Any:
    """The package. It has no types that a type checker could read."""
    return importlib.import_module("bitsandbytes")


@functools.cache
def _layer_class() -> Any:
    """bitsandbytes' layer, which peft knows, with a pass of our own."""
    bitsandbytes = _bitsandbytes()

    class QuantizedLinear(bitsandbytes.nn.Linear4bit):
        """bitsandbytes' own pass returns the type of its input, casts the bias for good, and
        repacks weights on a CPU with AVX512-BF16 in passes without gradient only.
        """

        def forward(self, x: Tensor) -> Tensor:
            x = x.to(self.compute_dtype)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            state = self.weight.quant_state
            return bitsandbytes.matmul_4bit(x, self.weight, bias=bias, quant_state=state)

        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            """Without the scales: a weight is saved whole (whole_weight)."""
            nn.Linear._save_to_state_dict(self, destination, prefix, keep_vars)

    return QuantizedLinear


def _quantized(layer: nn.Linear, device: torch.device, compute_dtype: torch.dtype) -> nn.Module:
    quantized = _layer_class()(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=compute_dtype,
        quant_type="nf4",
        device="meta",
    )
    weight = layer.weight.data.contiguous()
    quantized.weight = _bitsandbytes().nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", module=quantized
    )
    quantized.bias = layer.bias
    return quantized.to(device)
