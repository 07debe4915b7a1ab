"""srt-fast: self-training of language models on their own majority vote, without labels."""

from srt_fast.config import Config, override, recipes

__all__ = ["Config", "Trainer", "override", "recipes"]


def __getattr__(name: str):
    if (
        name == "Trainer"
    ):  # imports torch and transformers, which `srt-fast --help` should not wait for
        from srt_fast.train import Trainer

        return Trainer
    raise AttributeError(f"module 'srt_fast' has no attribute {name!r}")
