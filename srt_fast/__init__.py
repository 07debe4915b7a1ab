"""srt-fast: self-training of language models on their own majority vote, without labels."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srt_fast.config import Config, override, recipes
    from srt_fast.train import Trainer

__all__ = ["Config", "Trainer", "override", "recipes"]

# transformers imports torchao if it is installed. On a CPU torchao 0.18 warns of its CUDA
# libraries. It also uses what torch 2.13 has deprecated.
for logger in ("torchao", "torch.utils._pytree"):
    logging.getLogger(logger).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import the trainer's names when they are used.

    `srt-fast --help` must not wait for torch and transformers, and srt_fast.integrations must not
    need the packages of the extra `train`.
    """
    if name == "Trainer":
        from srt_fast.train import Trainer

        return Trainer
    if name in __all__:
        import srt_fast.config.recipes

        return getattr(srt_fast.config, name)
    raise AttributeError(f"module 'srt_fast' has no attribute {name!r}")
