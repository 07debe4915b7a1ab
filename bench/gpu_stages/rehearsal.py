"""Rehearses a stage of `make gpu` that cannot run on a few tokens on a CPU.

    python bench/gpu_stages/rehearsal.py loss|sampler|smollm FOLDER [ARGUMENTS]

Reports are rendered from made-up figures, which say so in every title.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from measure import environment
from report import Table, bar_table, bars, case_table, save, show, summary

MADE_UP = "MADE UP, NOT MEASURED"
MADE_UP_DEVICE = "NVIDIA H200"


def main(name: str, folder: Path, arguments: list[str]) -> None:
    {"loss": rehearse_loss, "sampler": rehearse_sampler, "smollm": rehearse_smollm}[name](
        folder, arguments
    )


def rehearse_loss(folder: Path, _: list[str]) -> None:
    """List the GPU's cases and providers, and render their report."""
    from loss import Row
    from steps.options import make_cases, parse, providers_of

    options = parse(None, ["--device", "cuda"])
    summaries = []
    for case in make_cases(options):
        providers = providers_of(case, options)
        print(f"{case.describe()}: {', '.join(provider.name for provider in providers)}")
        rows = [
            Row(provider=provider, seconds=[0.1 + number], peaks=[1 << 30], result_bytes=1 << 20)
            for number, provider in enumerate(providers)
        ]
        summaries.append(summary(case, case.active_tokens, 1 << 31, rows))
    document = _document() | {"cases": summaries, "bars": bars(summaries, "cuda")}
    tables = [*(case_table(case) for case in summaries), bar_table(document["bars"])]
    _render(folder / "made_up_loss.json", document, tables)


def rehearse_sampler(folder: Path, arguments: list[str]) -> None:
    from sampling import make_tables, parse_options

    options = parse_options(arguments)
    rows = [
        {
            "model": name,
            "sequences": count,
            "sampler": engine,
            "tokens_per_second": 1000.0,
            "times_hf": 1.0,
        }
        for name in options.models
        for count in options.sequences
        for engine in options.engines
    ]
    costs = [{"model": name, "start": 1.0, "sync": 1.0, "check": 1.0} for name in options.models]
    document = _document() | {"sampling": rows, "engine": costs, "steps": []}
    _render(folder / "made_up_sampling.json", document, make_tables(document))


def rehearse_smollm(_: Path, arguments: list[str]) -> None:
    """Build the run's configuration as `srt-fast train smollm` does."""
    from srt_fast.config.arguments import configure, split_arguments

    print(configure(split_arguments(["smollm", *arguments]), "train"))


def _document() -> dict[str, Any]:
    where = environment(torch.device("cpu")) | {"device": MADE_UP_DEVICE, "commit": MADE_UP}
    return {MADE_UP: True, "environment": where}


def _render(path: Path, document: dict[str, Any], tables: list[Table]) -> None:
    marked = [(f"{MADE_UP}: {title}", columns, lines) for title, columns, lines in tables]
    for table in marked:
        show(*table)
    save(path, document, marked, f"{MADE_UP}.\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
