"""srt-fast export: a run's model, or an adapter, as a whole Hugging Face model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from srt_fast.config import ModelConfig
from srt_fast.errors import print_text
from srt_fast.model.loading import load_policy, quiet_transformers
from srt_fast.run.folder import load_config

USAGE = """\
usage: srt-fast export RUN_DIR|MODEL FOLDER

Write the model of a run, or an adapter's folder, as a whole Hugging Face model. Adapters (LoRA) are
merged: to each weight W comes alpha / r * B A."""


def main(argv: list[str]) -> int:
    """Returns the exit code. Raises ValueError for bad input."""
    if len(argv) != 2 or argv[0].startswith("-"):
        print(USAGE)
        return 0 if argv in (["-h"], ["--help"]) else 2
    source, folder = Path(argv[0]), Path(argv[1])
    if folder.exists():
        raise ValueError(f"expected a folder that does not exist yet, got {str(folder)!r}")
    config = ModelConfig()
    if (source / "config.json").is_file() and (source / "metrics.jsonl").is_file():
        config = load_config(source).model
        source = source / "model"
    quiet_transformers()
    config = replace(config, device="cpu", compile=False)
    load_policy(str(source), config).save(folder)
    print_text(folder)
    return 0
