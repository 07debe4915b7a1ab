"""A KV cache for the embedded sampler, which appends in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

GROWTH = 1.5
"""New room over the room that was too small. Copies of old tokens then cost a constant a token."""


class RoomyLayer(DynamicLayer):
    """A layer's keys and values [B, heads, L, D], as views of tensors with room for more tokens.

    transformers' layer copies all of them for each token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rooms: list[Tensor] = []  # keys and values [B, heads, room, D]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, n, D] each, and return all until now."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = [states[:, :, :0] for states in (key_states, value_states)]
        length = self.get_seq_length()
        end = length + key_states.shape[2]
        for place, states in enumerate((key_states, value_states)):
            room = self._rooms[place]
            if end > room.shape[2]:
                batch, heads, _, width = states.shape
                grown = states.new_empty(batch, heads, int(end * GROWTH), width)
                grown[:, :, :length] = room[:, :, :length]
                room = self._rooms[place] = grown
            room[:, :, length:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self._rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch. A row may be taken several times."""
        length = self.get_seq_length()
        self._rooms = [room.index_select(0, indices) for room in self._rooms]
        self.keys, self.values = (room[:, :, :length] for room in self._rooms)


def make_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache. Layers with a window or a state of their own stay transformers'."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
