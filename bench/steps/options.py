"""Options of bench/loss.py, and the cases that they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from steps.batch import Case
from steps.providers import PROVIDERS, Provider

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEFAULTS: dict[str, dict[str, Any]] = {  # by device, of options that are left out
    "cpu": {
        "dtype": ["float32", "bfloat16"],
        "shape": [(576, 49152)],
        "tokens": [],
        "rollouts": 32,
        "unanimous": 0.375,
        "min_length": 16,
        "max_length": 256,
        "rounds": 5,
        "seconds": 30.0,
    },
    "cuda": {
        "dtype": ["bfloat16"],
        "shape": [(4096, 128256), (1536, 151936)],
        "tokens": [8192, 32768, 131072],
        "rollouts": 40,
        "unanimous": 0.4,
        "min_length": 64,
        "max_length": 1024,
        "rounds": 20,
        "seconds": 4.0,
    },
}
SCALING = (1024, 4096, 16384, 65536)  # tokens
SCALING_PROVIDERS = ("ours", "gemms")
GROUP_SIZE = 4  # rollouts of a prompt


def parse(description: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, with the device's defaults. arguments: None is the command line."""
    lines = []
    for device, defaults in DEFAULTS.items():
        values = ", ".join(f"{name} {value}" for name, value in defaults.items())
        lines.append(f"defaults on {device}: {values}")
    parser = argparse.ArgumentParser(
        description=description,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_cases(parser)
    _add_run(parser)
    options = parser.parse_args(arguments)
    for name, value in DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.rollouts % GROUP_SIZE:
        parser.error(f"--rollouts: expected a multiple of {GROUP_SIZE}, got {options.rollouts}")
    return options


def _add_cases(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", choices=DEFAULTS, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=DTYPES, nargs="+", help="of hidden states and LM head")
    add("--shape", type=_shape, nargs="+", metavar="H,V", help="hidden size, vocabulary size")
    text = "cases without padding: rollouts of --max-length, none unanimous"
    add("--tokens", type=int, nargs="*", help=text)
    text = f"case with padding: its rollouts, groups of {GROUP_SIZE}; 0 for none"
    add("--rollouts", type=int, help=text)
    add("--unanimous", type=float, help="part of that case's groups that has advantage 0")
    add("--min-length", type=int, help="tokens of a rollout, uniform up to --max-length")
    add("--max-length", type=int)
    sizes = ", ".join(f"{tokens // 1024}k" for tokens in SCALING)
    add("--scaling", action="store_true", help=f"ours alone at {sizes} tokens")
    add("--seed", type=int, default=0)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = [provider.name for provider in PROVIDERS]
    text = f"only these of {', '.join(names)}"
    add("--providers", nargs="+", choices=names, metavar="NAME", help=text)
    add("--rounds", type=int, help="timed calls of a provider")
    add("--seconds", type=float, help="a provider stops after two rounds and this much time")
    text = "seconds for the whole run; what has not run by then is listed as skipped"
    add("--budget", type=float, help=text)
    add("--threads", type=int, help="CPU threads of PyTorch")
    text = "JSON file (a table goes beside it), or a folder: named after the device"
    add("--out", type=Path, help=text)


def _shape(text: str) -> tuple[int, int]:
    hidden_size, vocab_size = text.split(",")
    return int(hidden_size), int(vocab_size)


def make_cases(options: argparse.Namespace) -> list[Case]:
    """For each shape and dtype the case with padding, then those without; or the scaling's."""
    cases = []
    for hidden_size, vocab_size in options.shape:
        for dtype in options.dtype:
            common = dict(
                hidden_size=hidden_size,
                vocab_size=vocab_size,
                dtype=DTYPES[dtype],
                group_size=GROUP_SIZE,
                seed=options.seed,
            )
            if options.scaling:
                cases += [_packed_case("scaling", tokens, options, common) for tokens in SCALING]
                continue
            if options.rollouts:
                cases.append(_padded_case(options, common))
            cases += [_packed_case("packed", tokens, options, common) for tokens in options.tokens]
    return cases


def _padded_case(options: argparse.Namespace, common: dict[str, Any]) -> Case:
    generator = torch.Generator().manual_seed(options.seed)
    lengths = torch.randint(
        options.min_length, options.max_length + 1, (options.rollouts,), generator=generator
    )
    unanimous = round(options.unanimous * options.rollouts / GROUP_SIZE)
    return Case(name="padded", lengths=lengths.tolist(), unanimous=unanimous, **common)


def _packed_case(
    name: str, tokens: int, options: argparse.Namespace, common: dict[str, Any]
) -> Case:
    length = min(options.max_length, tokens // GROUP_SIZE)
    rollouts = tokens // (length * GROUP_SIZE) * GROUP_SIZE
    return Case(name=name, lengths=[length] * rollouts, unanimous=0, **common)


def providers_of(case: Case, options: argparse.Namespace) -> list[Provider]:
    """The providers that run a case. Without padding a padded provider equals its packed twin."""
    names = options.providers or [provider.name for provider in PROVIDERS]
    if case.name == "scaling":
        names = SCALING_PROVIDERS
    return [
        provider
        for provider in PROVIDERS
        if provider.name in names and (case.is_padded or provider.layout != "padded")
    ]
