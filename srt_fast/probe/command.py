"""`srt-fast probe`: the command line."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from srt_fast.config.arguments import configure, split_arguments
from srt_fast.errors import print_text

DESCRIPTION = """\
Can a model train on its own vote on a task? Samples training prompts before any training, and
reports how clear the vote is, whether it is right (with gold answers), what a step costs on this
machine, and which group size, prompts a step and reward function to take. docs/probe.md explains
the figures and the rules.

MODEL is what srt-fast train takes: a folder, a .gguf file, a hub id, a recipe, or a YAML or TOML
file. All fields of srt-fast train may follow. The task is chosen with --task.kind, --task.name ...
Ctrl-C ends the sampling early; what was sampled is reported."""
EXAMPLES = """\
examples:
  srt-fast probe quickstart
  srt-fast probe /models/my-model --task.name gcd --prompts 128
  srt-fast probe /models/my-model --task.kind jsonl --task.name prompts.jsonl \\
      --task.prompt-column question --task.gold-column answer --out probe/
"""
WITHOUT_REWARD = {"reward.kind": "majority"}
"""A probe needs no reward: this kind fits every model and every task."""
FILES = ("probe.html", "probe.json", "samples.jsonl")
"""What --out writes."""


def main(argv: list[str]) -> int:
    """Run the command. Returns 0, 1 (the sampler failed), or 128 + signal (interrupted).

    Raises ValueError for bad arguments.
    """
    options, rest = _parser().parse_known_args(argv)
    arguments = split_arguments(rest)
    if arguments.resume is not None:
        raise ValueError("--resume: expected with srt-fast train only, got it with probe")
    config = configure(arguments, "probe", WITHOUT_REWARD)
    json_file = Path(options.json).resolve() if options.json else None
    folder = Path(options.out) if options.out else None
    if json_file and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise ValueError(f"--json: expected a file in an existing folder, got {options.json!r}")
    if folder and folder.exists() and not folder.is_dir():
        raise ValueError(f"--out: expected a folder, got {options.out!r}, which is none")
    # These import torch and rich. `srt-fast probe --help` must not wait for them.
    from srt_fast.files import write_atomically
    from srt_fast.probe.page import write_page
    from srt_fast.probe.run import probe
    from srt_fast.probe.table import print_probe
    from srt_fast.run.interrupts import RunInterrupted
    from srt_fast.sampling import SamplerError

    try:
        result = probe(config, prompts=options.prompts, samples=options.samples, folder=folder)
    except RunInterrupted as interrupt:
        print_text(f"Stopped by {interrupt} before the first samples.", sys.stderr)
        return 128 + interrupt.signal
    except SamplerError as error:
        print_text(f"error: {error}", sys.stderr)
        return 1
    document = json.dumps(result.to_json(), indent=1) + "\n"
    if json_file:
        write_atomically(json_file, document)
    if folder:
        write_atomically(folder / "probe.json", document)
        write_page(folder / "probe.html", result)
    print_probe(result)
    for path in [folder / name for name in FILES] if folder else []:
        print_text(path)
    return 128 + signal.Signals[result.interrupted] if result.interrupted else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="srt-fast probe",
        usage="srt-fast probe [MODEL] [OPTIONS] [--FIELD VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--prompts", type=int, default=64, metavar="N", help="training prompts (default: 64)")
    add(
        "--samples",
        type=int,
        default=16,
        metavar="K",
        help="completions of each prompt, an even number from 4 on (default: 16)",
    )
    add("--json", metavar="FILE", help="write the figures as one JSON document")
    add(
        "--out",
        metavar="FOLDER",
        help="write a page, the JSON document, and the completions, which srt-fast vote reads",
    )
    return parser
