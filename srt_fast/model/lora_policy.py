"""A policy that trains adapters, and its views: without adapters, and with a teacher's."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from srt_fast.distributed.tensor_files import read_tensors, write_tensors
from srt_fast.model.lora import (
    TRAINED,
    active_adapter,
    adapted_layers,
    adapter_weights,
    base_weights,
    merged_weight,
)
from srt_fast.model.policy import Policy, Result, saved_tensors
from srt_fast.model.quantized import is_quantized, whole_weight


class LoRAPolicy(Policy):
    """A policy of a model with adapters (srt_fast/model/lora.py).

    Its weights for samplers, and what `save` writes, are merged: those of a model without adapters.
    A checkpoint holds the adapter alone, as a folder that peft reads.

    `view` gives the same model with another adapter, or with none. A view's passes are without
    gradient, and run inside `run` or `gathered_weights`.
    """

    weights_file = "adapter_model"
    _adapter: str | None = TRAINED

    def view(self, adapter: str | None) -> LoRAPolicy:
        """The model with another adapter, or with none: the starting model. Copies no weight."""
        view = copy.copy(self)
        view._adapter = adapter
        return view

    def run(self, function: Callable[[], Result]) -> Result:
        """See Policy.run."""
        with self._active():
            return super().run(function)

    @contextlib.contextmanager
    def gathered_weights(self) -> Iterator[None]:
        """See Policy.gathered_weights."""
        with super().gathered_weights(), self._active():
            yield

    @torch.no_grad()
    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights, merged, by their names in a model without adapters. One copy at a time."""
        own = base_weights(saved_tensors(self.model))
        quantized = {
            f"{name.removesuffix('.base_layer')}.weight": module
            for name, module in self.model.named_modules()
            if is_quantized(module) and not hasattr(module, "lora_A")
        }
        layers = {f"{name}.weight": layer for name, layer in adapted_layers(self.model).items()}
        for name, tensor in revert_weight_conversion(self.model, own).items():
            layer = layers.pop(name, None)
            base = quantized.pop(name, None)
            if layer is not None and self._adapter is not None:
                yield name, merged_weight(layer, self._adapter)
            else:
                yield name, tensor.detach() if base is None else whole_weight(base)
        others = {*layers, *quantized}
        assert not others, f"the checkpoint's layout has other names than {sorted(others)}"

    def save(self, folder: Path) -> None:
        """Write the merged model and the tokenizer in Hugging Face format."""
        merged = {name: tensor.cpu() for name, tensor in self.named_weights()}
        write_tensors(folder, merged, self.world, merge=True)
        with self.world.agreement():
            if self.world.is_main:
                super().save_without_weights(folder)

    def load(self, folder: Path) -> None:
        """Copy the adapter in a checkpoint's folder into this model."""
        read_tensors(folder, self.own_weights(), self.world)

    def save_without_weights(self, folder: Path) -> None:
        """Write what an adapter's folder has beside its weights, and the tokenizer."""
        self.model.peft_config[TRAINED].save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def own_weights(self) -> dict[str, Tensor]:
        """The adapter's A and B by their names in a peft folder, not copied."""
        assert self._adapter is not None, "the starting model has no adapter"
        return adapter_weights(self.model, self._adapter)

    def checkpoint_weights(self) -> dict[str, Tensor]:
        """See Policy.checkpoint_weights."""
        return self.own_weights()

    def copy_adapter(self, other: LoRAPolicy) -> None:
        """Set the adapter of this view to the values of another view's."""
        weights = other.own_weights()
        with torch.no_grad():
            for name, tensor in self.own_weights().items():
                tensor.copy_(weights[name])

    def _active(self) -> contextlib.AbstractContextManager[None]:
        """Inside, passes have this view's adapter."""
        if self._adapter == TRAINED:
            return contextlib.nullcontext()
        return active_adapter(self.model, self._adapter)
