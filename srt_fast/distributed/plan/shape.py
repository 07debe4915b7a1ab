"""The shape of a model: which weights it has. Read from config.json, without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Dense models of equal blocks with grouped-query attention, RMSNorm and SwiGLU."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A dense model of one of MODEL_TYPES."""

    name: str
    hidden: int
    """Width of the residual stream, H."""
    intermediate: int
    """Width of the MLP, I."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    """V."""
    is_tied: bool
    """The head's weight is the embedding."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def query(self) -> int:
        """Elements of a token's queries in one layer."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Elements of a token's keys in one layer. Values have as many."""
        return self.kv_heads * self.head_dim

    @property
    def block_matrices(self) -> list[tuple[int, int]]:
        """(rows, columns) of the matrices of a block: each is multiplied once with every token."""
        hidden, intermediate = self.hidden, self.intermediate
        attention = [(self.query, hidden), (self.key, hidden), (self.key, hidden)]
        mlp = [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
        return [*attention, (hidden, self.query), *mlp]

    @property
    def block_weights(self) -> list[tuple[int, int]]:
        """(rows, columns) of all weights of a block: matrices, norms and biases."""
        vectors = [self.hidden, self.hidden]
        vectors += [self.query, self.key, self.key] if self.qkv_bias else []
        vectors += [self.hidden] if self.o_bias else []
        vectors += [self.intermediate, self.intermediate, self.hidden] if self.mlp_bias else []
        vectors += [self.head_dim, self.head_dim] if self.qk_norm else []
        return self.block_matrices + [(length, 1) for length in vectors]

    @property
    def root_weights(self) -> list[tuple[int, int]]:
        """(rows, columns) of the weights outside of blocks: embedding, final norm and head."""
        embedding = (self.vocabulary, self.hidden)
        return [embedding, (self.hidden, 1)] + ([] if self.is_tied else [embedding])

    @property
    def block_size(self) -> int:
        """Elements of a block's weights."""
        return _size(self.block_weights)

    @property
    def block_matrix_size(self) -> int:
        """Elements of a block's matrices."""
        return _size(self.block_matrices)

    @property
    def root_size(self) -> int:
        """Elements of the weights outside of blocks."""
        return _size(self.root_weights)

    @property
    def size(self) -> int:
        """Elements of all weights."""
        return self.layers * self.block_size + self.root_size

    def shard_size(self, ranks: int) -> int:
        """Elements of all weights that rank 0 holds. FSDP2 splits rows, and rounds up."""
        return self.layers * _shard(self.block_weights, ranks) + _shard(self.root_weights, ranks)


def _size(weights: list[tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in weights)


def _shard(weights: list[tuple[int, int]], ranks: int) -> int:
    return sum(-(-rows // ranks) * columns for rows, columns in weights)


PRESETS = {
    shape.name: shape
    for shape in (
        ModelShape(
            name="Qwen2.5-1.5B",
            hidden=1536,
            intermediate=8960,
            layers=28,
            heads=12,
            kv_heads=2,
            head_dim=128,
            vocabulary=151936,
            is_tied=True,
            qkv_bias=True,
        ),
        ModelShape(
            name="Qwen2.5-7B",
            hidden=3584,
            intermediate=18944,
            layers=28,
            heads=28,
            kv_heads=4,
            head_dim=128,
            vocabulary=152064,
            is_tied=False,
            qkv_bias=True,
        ),
        ModelShape(
            name="Qwen2.5-32B",
            hidden=5120,
            intermediate=27648,
            layers=64,
            heads=40,
            kv_heads=8,
            head_dim=128,
            vocabulary=152064,
            is_tied=False,
            qkv_bias=True,
        ),
        ModelShape(
            name="Llama-3-70B",
            hidden=8192,
            intermediate=28672,
            layers=80,
            heads=64,
            kv_heads=8,
            head_dim=128,
            vocabulary=128256,
            is_tied=False,
        ),
    )
}
"""From the config.json of these models on the Hugging Face hub."""


def find_shape(model: str) -> ModelShape:
    """The shape of a preset, by its name in any case, or of a Hugging Face folder.

    Raises ValueError for an unknown name, a folder without a readable config.json, and a model that
    is not of MODEL_TYPES.
    """
    for name, shape in PRESETS.items():
        if model.lower() == name.lower():
            return shape
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"--model: expected one of {', '.join(PRESETS)} or a Hugging Face folder, got {model!r}"
        )
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"--model: expected a folder with config.json, got {model!r} without one")
    try:
        settings = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: expected valid JSON, got {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: expected an object, got {type(settings).__name__}")
    return _shape_of_settings(settings, file)


def _shape_of_settings(settings: dict[str, Any], file: Path) -> ModelShape:
    model_type = settings.get("model_type")
    if model_type not in MODEL_TYPES:
        types = ", ".join(MODEL_TYPES)
        raise ValueError(f"{file}: model_type: expected one of {types}, got {model_type!r}")

    def read(name: str, default: int | None = None) -> int:
        value = settings.get(name, default)
        value = default if value is None else value  # transformers writes null for its default
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{file}: {name}: expected a positive integer, got {value!r}")
        return value

    heads = read("num_attention_heads")
    hidden = read("hidden_size")
    has_bias = bool(settings.get("attention_bias", False))
    return ModelShape(
        name=file.parent.name,
        hidden=hidden,
        intermediate=read("intermediate_size"),
        layers=read("num_hidden_layers"),
        heads=heads,
        kv_heads=read("num_key_value_heads", heads),
        head_dim=read("head_dim", hidden // heads),
        vocabulary=read("vocab_size"),
        is_tied=bool(settings.get("tie_word_embeddings", False)),
        qkv_bias=has_bias or model_type == "qwen2",
        o_bias=has_bias,
        mlp_bias=bool(settings.get("mlp_bias", False)),
        qk_norm=model_type == "qwen3",
    )
