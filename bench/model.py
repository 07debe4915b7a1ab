"""The performance model of the ops over the LM head, beside what was measured.

    python bench/model.py                                   all chips, the cases of bench/loss.py
    python bench/model.py --chips H200 --launches           and what each kind of launch takes
    python bench/model.py --out bench/results/model.md

The steps of bench/loss.py run on tensors that say they are on a GPU (roofline/trace.py). So chunks,
launches, FLOPs, bytes and the peak of memory are those of the ops' own code. Seconds follow from
data sheets and a few assumptions, which roofline/chips.py names: a launch takes the longest of its
FLOPs, its bytes, and 3 microseconds. Whole waves of tiles count for the library's GEMMs, and reads
of the L2 cache for our own.

    TFLOP, GB         of products of matrices; read and written, each tensor of a launch once
    launches          operators and kernels; an operator may launch several
    peak MiB          above the inputs, results included
    memory            of the chip's, inputs included
    ms, us a token    predicted; a token is an active one

Columns that say "predicted, not measured" are counted and calculated. Measured figures are those of
JSON files of bench/loss.py, of the same chip, case and step. The last line of standard output is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import triton.knobs

from measure import environment
from report import Table, cell, markdown
from roofline.chips import CHIPS, find_chip
from roofline.predict import Prediction, predict
from steps.options import make_cases, parse
from steps.providers import PROVIDERS

RESULTS = Path(__file__).parent / "results"
STEPS = ("ours", "ours_frozen", "ours_logprob", "ours_logprob_grad", "gemms")
PREDICTED = "(predicted, not measured)"
COLUMNS = [
    "case",
    "step",
    *(
        f"{name} {PREDICTED}"
        for name in ("TFLOP", "GB", "launches", "peak MiB", "memory", "ms", "us a token")
    ),
    "ms measured",
    "measured / predicted",
    "peak MiB measured",
    "commit measured",
]
LAUNCH_COLUMNS = [
    "launch",
    *(f"{name} {PREDICTED}" for name in ("launches", "TFLOP", "GB", "ms", "share")),
]

Measured = dict[tuple, dict[str, Any]]
"""By chip, case and step: seconds, peak_bytes and commit."""


def read_measured(folder: Path) -> Measured:
    """The figures of the JSON files of bench/loss.py in a folder. Those of a CPU are left out.

    Of several files with the same case the one with the latest date counts.
    """
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    loss_documents = [
        document for document in documents if "cases" in document and "environment" in document
    ]
    measured = {}
    for document in sorted(loss_documents, key=lambda document: document["environment"]["date"]):
        chip = find_chip(document["environment"]["device"])
        for case in document["cases"]:
            if chip is None or "hidden_size" not in case:  # also the voter's cases
                continue
            for step in STEPS:
                seconds = cell(case, step, "seconds")
                if seconds is not None:
                    measured[chip.name, _key_of(case), step] = {
                        "seconds": seconds,
                        "peak_bytes": cell(case, step, "peak_bytes"),
                        "commit": document["environment"]["commit"],
                    }
    return measured


def _key_of(case: dict[str, Any]) -> tuple:
    names = ("name", "hidden_size", "vocab_size", "dtype", "tokens", "active_tokens")
    return tuple(case[name] for name in names)


def figures_of(prediction: Prediction, measured: Measured) -> dict[str, Any]:
    """What the tables have of a prediction. measured is None without such a figure."""
    case = prediction.case
    figures = {
        "chip": prediction.chip.name,
        "name": case.name,
        "hidden_size": case.hidden_size,
        "vocab_size": case.vocab_size,
        "dtype": str(case.dtype).removeprefix("torch."),
        "tokens": sum(case.lengths),
        "active_tokens": case.active_tokens,
        "step": prediction.provider,
        "predicted": {
            "flops": prediction.flops,
            "bytes": prediction.bytes,
            "launches": len(prediction.launches),
            "peak_bytes": prediction.peak_bytes,
            "memory_share": prediction.memory_share,
            "seconds": prediction.seconds,
        },
    }
    key = (prediction.chip.name, _key_of(figures), prediction.provider)
    return figures | {"measured": measured.get(key)}


def chip_table(chip: str, rows: list[dict[str, Any]]) -> Table:
    return f"{chip} {PREDICTED}", COLUMNS, [_line(row) for row in rows if row["chip"] == chip]


def _line(row: dict[str, Any]) -> list[str]:
    predicted = row["predicted"]
    case = f"{row['name']}: H {row['hidden_size']}, V {row['vocab_size']}, {row['dtype']}, "
    case += f"{row['tokens']} tokens, {row['active_tokens']} active"
    cells = [
        case,
        row["step"],
        f"{predicted['flops'] / 1e12:.1f}",
        f"{predicted['bytes'] / 1e9:.1f}",
        str(predicted["launches"]),
        f"{predicted['peak_bytes'] / 2**20:.0f}",
        f"{100 * predicted['memory_share']:.0f} %",
        f"{predicted['seconds'] * 1e3:.1f}",
        f"{predicted['seconds'] / row['active_tokens'] * 1e6:.2f}",
    ]
    measured = row["measured"]
    if measured is None:
        return [*cells, "", "", "", ""]
    return [
        *cells,
        f"{measured['seconds'] * 1e3:.1f}",
        f"{measured['seconds'] / predicted['seconds']:.2f}",
        f"{measured['peak_bytes'] / 2**20:.0f}",
        measured["commit"][:7],
    ]


def launch_table(prediction: Prediction) -> Table:
    """What each kind of launch takes, the dearest first."""
    lines = []
    for name, launches, seconds in prediction.by_name():
        lines.append(
            [
                name,
                str(len(launches)),
                f"{sum(launch.flops for launch in launches) / 1e12:.2f}",
                f"{sum(launch.bytes for launch in launches) / 1e9:.2f}",
                f"{seconds * 1e3:.3f}",
                f"{100 * seconds / prediction.seconds:.1f} %",
            ]
        )
    title = f"{prediction.chip.name}, {prediction.provider}, {prediction.case.describe()}"
    return title, LAUNCH_COLUMNS, lines


def save(path: Path, document: dict[str, Any], tables: list[Table]) -> None:
    where = document["environment"]
    header = f"commit {where['commit']}, dirty {where['dirty']}, {where['date']}, "
    header += f"torch {where['torch']}. Predictions need no GPU."
    sources = "\n".join(f"- {chip.name}: {chip.source}." for chip in CHIPS.values())
    assert __doc__
    title, _, note = __doc__.split("\n\n", 2)
    paragraphs = [f"# {title}", header, note.rstrip(), sources, *(markdown(*t) for t in tables)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(paragraphs))
    print(f"written: {path}", file=sys.stderr)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--chips",
        nargs="+",
        choices=CHIPS,
        default=list(CHIPS),
        metavar="NAME",
        help=str(list(CHIPS)),
    )
    add("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="providers of bench/loss.py")
    add("--launches", action="store_true", help="a table of the launches of each step")
    add("--results", type=Path, default=RESULTS, help="folder of JSON files of bench/loss.py")
    add("--case", default="", help="options of bench/loss.py that name the cases, in quotes")
    add("--out", type=Path, metavar="FILE.md")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("expected TRITON_INTERPRET unset: the interpreter launches nothing")
    options.cases = make_cases(parse(None, ["--device", "cuda", *options.case.split()]))
    return options


def main(options: argparse.Namespace) -> None:
    chips = [CHIPS[name] for name in options.chips]
    providers = [provider for provider in PROVIDERS if provider.name in options.steps]
    predictions = [
        prediction
        for case in options.cases
        for provider in providers
        for prediction in predict(provider, case, chips)
    ]
    measured = read_measured(options.results)
    rows = [figures_of(prediction, measured) for prediction in predictions]
    tables = [chip_table(chip.name, rows) for chip in chips]
    if options.launches:
        tables += [launch_table(prediction) for prediction in predictions]
    for table in tables:
        print(markdown(*table), flush=True)
    document = {"environment": environment(torch.device("cpu")), "rows": rows}
    if options.out:
        save(options.out, document, tables)
    print(json.dumps(document))


if __name__ == "__main__":
    main(parse_options())
