"""Time and memory of one policy-gradient step over the LM head, ours and others', checked before they are timed.

    python bench/loss.py                                    CPU: H 576, V 49152, fp32 and bf16
    python bench/loss.py --shape 896,151936 --rounds 2      another head
    python bench/loss.py --scaling                          ours alone, 1k to 64k tokens
    python bench/loss.py --device cuda --out bench/results/

Providers take turns, one call each a round; medians. Costs are per active token: with an advantage other than 0.
The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from batch import Batch, Case, make_batch
from measure import environment, measure
from providers import PROVIDERS, Provider
from report import bar_table, bars, case_table, save, show, summary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Beyond these it is another function, and no time is told: rms of log-probs in nats, relative error of gradients, loss.
# bf16 logits of 32 to 64 are off by up to 0.125 each: a provider that merely rounds so passes, and shows its error.
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.2}
DEFAULTS = {  # per device, of options that are left out
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
SCALING = (1024, 4096, 16384, 65536)
GROUP = 4  # rollouts of a prompt


@dataclass(kw_only=True)
class Row:
    """A provider in a case. status: ok, wrong, absent (not installed), failed (it raised), or skipped (no time left)."""

    provider: Provider
    status: str = "ok"
    reason: str = ""
    errors: dict[str, float | None] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peaks: list[int | None] = field(default_factory=list)  # bytes above what was in use before
    returned: int = 0  # bytes of the gradients, which are part of the peak

    def attempt(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Other people's code on hardware it may not know: whatever it raises is its result."""
        try:
            return call(*arguments)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self.status = "absent" if isinstance(error, ImportError) else "failed"
            self.reason = f"{type(error).__name__}: {lines[0][:150]}"
            return None


def shape(text: str) -> tuple[int, int]:
    hidden_size, vocab_size = text.split(",")
    return int(hidden_size), int(vocab_size)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    defaults = [
        f"defaults on {device}: {', '.join(f'{k} {v}' for k, v in found.items())}"
        for device, found in DEFAULTS.items()
    ]
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="\n".join(defaults), formatter_class=raw
    )
    add = parser.add_argument
    add("--device", choices=DEFAULTS, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=DTYPES, nargs="+", help="of hidden states and LM head")
    add("--shape", type=shape, nargs="+", metavar="H,V", help="hidden size, vocabulary size")
    add(
        "--tokens",
        type=int,
        nargs="*",
        help="cases without padding: rollouts of --max-length, none unanimous",
    )
    add(
        "--rollouts",
        type=int,
        help=f"case with padding: its rollouts, groups of {GROUP}; 0 for none",
    )
    add("--unanimous", type=float, help="part of that case's groups that has advantage 0")
    add("--min-length", type=int, help="tokens of a rollout, uniform up to --max-length")
    add("--max-length", type=int)
    names = [provider.name for provider in PROVIDERS]
    add(
        "--providers",
        nargs="+",
        choices=names,
        metavar="NAME",
        help=f"only these of {', '.join(names)}",
    )
    add(
        "--scaling",
        action="store_true",
        help="ours alone at " + ", ".join(f"{n // 1024}k" for n in SCALING) + " tokens",
    )
    add("--rounds", type=int, help="timed calls of a provider")
    add("--seconds", type=float, help="after two rounds a provider that has used this much stops")
    add(
        "--budget",
        type=float,
        help="seconds for everything; what has not run by then is listed as skipped",
    )
    add("--threads", type=int, help="CPU threads of PyTorch")
    add("--seed", type=int, default=0)
    add(
        "--out",
        type=Path,
        help="JSON file (a table goes beside it), or a folder: named after the device",
    )
    options = parser.parse_args(arguments)
    for name, value in DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.rollouts % GROUP:
        parser.error(f"--rollouts: expected a multiple of {GROUP}, got {options.rollouts}")
    return options


def make_cases(options: argparse.Namespace) -> list[Case]:
    """The case with padding, then those without. Of the scaling: those alone."""
    found = []
    for hidden_size, vocab_size in options.shape:
        for dtype in options.dtype:
            common = dict(
                hidden_size=hidden_size,
                vocab_size=vocab_size,
                dtype=DTYPES[dtype],
                seed=options.seed,
            )
            common |= dict(group_size=GROUP)
            if options.rollouts and not options.scaling:
                generator = torch.Generator().manual_seed(options.seed)
                lengths = torch.randint(
                    options.min_length,
                    options.max_length + 1,
                    (options.rollouts,),
                    generator=generator,
                )
                unanimous = round(options.unanimous * options.rollouts / GROUP)
                found.append(
                    Case(name="padded", lengths=lengths.tolist(), unanimous=unanimous, **common)
                )
            for tokens in SCALING if options.scaling else options.tokens:
                length = min(options.max_length, tokens // GROUP)
                rollouts = tokens // (length * GROUP) * GROUP
                name = "scaling" if options.scaling else "packed"
                found.append(Case(name=name, lengths=[length] * rollouts, unanimous=0, **common))
    return found


def chosen(case: Case, options: argparse.Namespace) -> list[Provider]:
    """Without padding the packed twin of a padded provider says it all."""
    names = (
        ["ours", "gemms"]
        if case.name == "scaling"
        else options.providers or [provider.name for provider in PROVIDERS]
    )
    return [p for p in PROVIDERS if p.name in names and (case.padded or p.layout != "padded")]


def prepare(row: Row, batch: Batch, case: Case) -> Callable[[], Any] | None:
    """Build a provider's step, run it once and compare it with the truth. None unless it may be timed."""
    step = row.attempt(row.provider.build, batch)
    result = row.attempt(step) if step else None
    if row.provider.objective == "none" or row.status != "ok":
        return step if row.status == "ok" else None
    logprobs = (
        row.attempt(row.provider.logprobs, batch) if row.provider.logprobs else result.logprobs
    )
    row.returned = result.dhidden.nbytes + result.dweight.nbytes
    row.errors = batch.errors(
        row.provider.objective, result.loss, logprobs, result.dhidden, result.dweight
    )
    bound = BOUNDS[case.dtype]
    judged = {
        name: error
        for name, error in row.errors.items()
        if name != "logprob_max" and error is not None
    }
    off = [
        f"{name} {error:.2g}" for name, error in judged.items() if not error <= bound
    ]  # nan is off too
    if off and row.status == "ok":
        row.status, row.reason = "wrong", f"{', '.join(off)}; allowed {bound:g}"
    return step if row.status == "ok" else None


def run_case(
    case: Case, options: argparse.Namespace, deadline: float
) -> tuple[int, int, list[Row]]:
    """Active tokens, bytes of a chunk of ours, and every provider's row.

    Each runs once for its errors, then round after round for time and memory.
    """
    torch._dynamo.reset()  # at the ninth shape torch.compile would silently go back to eager
    device = torch.device(options.device)
    batch = make_batch(case, device)
    rows = [Row(provider=provider) for provider in chosen(case, options)]
    steps, now = [], time.monotonic()
    for row in rows:
        if (
            time.monotonic() > now + (deadline - now) / 2
        ):  # the other half is for timing those that were checked
            row.status, row.reason = "skipped", "the time budget was used up"
        elif (step := prepare(row, batch, case)) is not None:
            steps.append((row, step))
        if row.status == "failed" and device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"  {row.provider.name}: {row.reason or 'checked'}", file=sys.stderr, flush=True)
    for number in range(options.rounds):
        for row, step in steps:
            late = time.monotonic() > deadline or (
                number >= 2 and sum(row.seconds) > options.seconds
            )
            measured = None if late or row.status != "ok" else row.attempt(measure, step, device)
            if measured:
                row.seconds.append(measured[1])
                row.peaks.append(measured[2])
                print(
                    f"  round {number + 1}, {row.provider.name}: {measured[1]:.3g} s",
                    file=sys.stderr,
                    flush=True,
                )
            del measured  # gigabytes of gradients
    for row in rows:
        if row.status == "ok" and not row.seconds:
            row.status, row.reason = "skipped", "the time budget was used up"
    return batch.active, batch.chunk_bytes, rows


def main(options: argparse.Namespace) -> int:
    """Exit status: 1 where ours was wrong or raised."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    document: dict[str, Any] = {"environment": environment(device), "cases": []}
    todo, tables = make_cases(options), []
    deadline = time.monotonic() + (options.budget or math.inf)
    for number, case in enumerate(todo):
        print(case.describe(), file=sys.stderr, flush=True)
        share = (deadline - time.monotonic()) / (len(todo) - number)
        document["cases"].append(summary(case, *run_case(case, options, time.monotonic() + share)))
        tables.append(case_table(document["cases"][-1]))
        show(*tables[-1])
    document["bars"] = bars(document["cases"], device.type)
    tables.append(bar_table(document["bars"]))
    show(*tables[-1])
    if options.out:
        name = (
            document["environment"]["device"].lower().replace(" ", "-") + ".json"
        )  # where --out is a folder
        save(options.out if options.out.suffix else options.out / name, document, tables)
    print(json.dumps(document))
    ours = [
        row["status"]
        for case in document["cases"]
        for row in case["rows"]
        if row["provider"] == "ours"
    ]
    return int("wrong" in ours or "failed" in ours)


if __name__ == "__main__":
    sys.exit(main(parse()))
