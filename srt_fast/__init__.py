"""srt-fast: self-training of language models on their own majority vote, without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from srt_fast.config import Config, override, recipes

if TYPE_CHECKING:
    from srt_fast.train import Trainer

__all__ = ["Config", "Trainer", "override", "recipes"]


def __getattr__(name: str) -> Any:
    if name == "Trainer":
        # Imports torch and transformers, which takes seconds. `srt-fast --help` must not need them.
        from srt_fast.train import Trainer

        return Trainer
    raise AttributeError(f"module 'srt_fast' has no attribute {name!r}")
