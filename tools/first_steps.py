"""Runs the first steps of the quickstart and fails if a call of ours is deprecated.

`make transformers` runs it with the oldest and the newest transformers that pyproject.toml allows.
The model is the embedded one with random weights, because a warm start takes minutes. The run
samples, trains, evaluates, probes and saves checkpoints. Then it is resumed for one more step. A
second run recomputes activations.

What counts: warnings that something is deprecated, raised in srt_fast, srt_kernels, transformers or
torch, and such lines in transformers' log. Other libraries' warnings are theirs.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import TextIO

import transformers

from srt_fast import cli, recipes
from srt_fast.quickstart import build_model, build_tokenizer

CATEGORIES = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
PACKAGES = ("/srt_fast/", "/srt_kernels/", "/transformers/", "/torch/")
# Random completions have random answers, so a group's vote is never unanimous: there is a gradient.
OPTIONS = {
    "train.steps": 2,
    "train.prompts-per-step": 8,
    "sampling.engine": "hf",
    "sampling.group-size": 4,
    "sampling.max-new-tokens": 4,
    "task.answer-rule": "whole",
    "reward.kind": "majority",
    "evaluation.every": 2,
    "evaluation.prompts": 8,
    "evaluation.samples": 2,
    "monitor.every": 1,
    "monitor.prompts": 8,
    "monitor.samples": 2,
    "checkpoint.every": 1,
    "log.sample-every": 1,
}


class Deprecations(logging.Handler):
    """The deprecation warnings of a run. Also a handler of transformers' logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a log record that says that something is deprecated."""
        message = record.getMessage()
        if "deprecated" in message or "will be removed" in message:
            self.messages.add(f"{record.name}: {message}\n    called from {our_line()}")

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Keep a warning. Takes the place of warnings.showwarning."""
        if issubclass(category, CATEGORIES) and any(part in filename for part in PACKAGES):
            self.messages.add(f"{filename}:{lineno}: {message}\n    called from {our_line()}")


def main() -> int:
    """Run, and print the deprecation warnings. Returns the exit code."""
    deprecations = Deprecations()
    warnings.showwarning = deprecations.show
    warnings.simplefilter("always")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_warning()
    # The trainer silences transformers' log with this function. Here the log is read.
    transformers.utils.logging.set_verbosity_error = lambda: None
    logging.getLogger("transformers").addHandler(deprecations)
    with tempfile.TemporaryDirectory() as folder:
        code = run(Path(folder))
    print(f"transformers {transformers.__version__}: {len(deprecations.messages)} deprecated calls")
    for message in sorted(deprecations.messages):
        print(message)
    return code or int(bool(deprecations.messages))


def run(folder: Path) -> int:
    """Two steps, a resumed third one, and a run of its own. Returns the exit code."""
    config = recipes.quickstart()
    tokenizer = build_tokenizer()
    build_model(config, tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    options = {"model.path": folder / "model", **OPTIONS}
    recomputed = {**options, "model.gradient-checkpointing": True}
    return (
        train(folder / "run", options)
        or cli.main(["train", "--resume", str(folder / "run"), "--train.steps", "3"])
        or train(folder / "recomputed", recomputed)
    )


def train(run_dir: Path, options: dict[str, object]) -> int:
    """Train the quickstart with options. Returns the exit code."""
    options = {**options, "run-dir": run_dir}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return cli.main(["train", "quickstart", *arguments])


def our_line() -> str:
    """The innermost line of srt_fast or srt_kernels on the stack."""
    frames = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_stack()
        if "/srt_fast/" in frame.filename or "/srt_kernels/" in frame.filename
    ]
    return frames[-1] if frames else "no line of ours"


if __name__ == "__main__":
    sys.exit(main())
