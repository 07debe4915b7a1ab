"""Model FLOPs of a pass: what its matrix products need at least, whatever code computes them.

A product of [m, k] and [k, n] takes 2 m k n FLOPs: a multiplication and an addition for each term.
From this follows, for q queries (tokens that are computed) in segments that see k keys:

    linear layers     2 FLOPs a weight and token. A mixture of experts: the weights of the
                      num_experts_per_tok experts that a token goes through.
    attention         A query's scores take 2 D FLOPs a visible key and head, and the weighted sum
                      of the values 2 D_v. A query at position p sees p + 1 keys, or the last w of
                      them with a sliding window of w. The queries of a segment are its last q
                      positions, so it has sum_{p=k-q}^{k-1} min(p + 1, w) pairs.
    LM head           2 V H a target. Rows without a target have no logits.
    backward          A linear layer has two products of the forward's size, one for the gradient
                      of its input and one for that of its weight. A frozen weight has no second
                      one. Attention has twice the forward: four products for two.

Left out: norms, rotations, activations and the softmax, which are no products; what is computed a
second time, as in PaLM's MFU (the body's forward pass with gradient checkpointing, the scores of
fused attention in its backward pass); padding; with frozen weights, that nothing below the lowest
trained layer needs a gradient.

Source: Kaplan et al. (arXiv 2001.08361) count 2 a weight and token forward and 4 backward. PaLM
(arXiv 2204.02311, appendix B) adds attention, over all keys, and defines MFU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class SegmentLengths(NamedTuple):
    """What one pass computes: s runs of neighbouring tokens, each aligned at the end of its keys.

    A sequence of 7 tokens is (7, 7). A prompt of 4 and two completions of 2 and 3 that share it
    are (4, 4), (2, 6) and (3, 7).
    """

    query_lengths: Sequence[int]  # s, tokens that are computed
    key_lengths: Sequence[int]  # s, positions that the last of them may see, itself included
    targets: int  # tokens whose logits are computed


class Attention(NamedTuple):
    """The attention of one layer."""

    heads: int  # of the queries
    kv_heads: int
    key_dim: int  # elements of a head's query and key, D
    value_dim: int  # elements of a head's value, D_v
    window: int | None  # keys that a query sees at most. None: all before it


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """What a model computes and reads for a token. Weights are elements of matrices."""

    weights: int  # of the body that one token is multiplied with
    trained_weights: int  # those of them that get a gradient
    head_weights: int  # V x H
    trained_head_weights: int
    attention: tuple[Attention, ...]  # of each layer

    def forward(self, segments: SegmentLengths) -> int:
        """FLOPs of a pass without gradient."""
        return self._body(segments) + 2 * self.head_weights * segments.targets

    def training(self, segments: SegmentLengths) -> int:
        """FLOPs of a forward and a backward pass."""
        tokens = sum(segments.query_lengths)
        backward = 2 * tokens * (self.weights + self.trained_weights)
        backward += 2 * self._attention(segments)
        backward += 2 * segments.targets * (self.head_weights + self.trained_head_weights)
        return self.forward(segments) + backward

    def read_elements(self, segments: SegmentLengths, steps: int) -> int:
        """Elements that decoding reads at least: all weights in each step, and visible keys and
        values for each query. Of experts, those of one token.
        """
        cached = sum(
            layer.kv_heads * (layer.key_dim + layer.value_dim) * pairs
            for layer, pairs in self._pairs(segments)
        )
        return steps * (self.weights + self.head_weights) + cached

    def _body(self, segments: SegmentLengths) -> int:
        return 2 * self.weights * sum(segments.query_lengths) + self._attention(segments)

    def _attention(self, segments: SegmentLengths) -> int:
        return sum(
            2 * layer.heads * (layer.key_dim + layer.value_dim) * pairs
            for layer, pairs in self._pairs(segments)
        )

    def _pairs(self, segments: SegmentLengths) -> list[tuple[Attention, int]]:
        """Each layer with its pairs of a query and a visible key, over all segments."""
        lengths = list(zip(segments.query_lengths, segments.key_lengths, strict=True))
        pairs = {
            window: sum(visible_keys(queries, keys, window) for queries, keys in lengths)
            for window in {layer.window for layer in self.attention}
        }
        return [(layer, pairs[layer.window]) for layer in self.attention]


def visible_keys(queries: int, keys: int, window: int | None = None) -> int:
    """Keys that the last `queries` of `keys` positions see, summed over the queries."""
    return _seen_so_far(keys, window) - _seen_so_far(keys - queries, window)


def _seen_so_far(positions: int, window: int | None) -> int:
    """sum_{p=1}^{positions} min(p, window)."""
    growing = positions if window is None else min(positions, window)
    return growing * (growing + 1) // 2 + (positions - growing) * (window or 0)
