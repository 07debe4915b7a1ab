"""Time and memory of one policy-gradient step over the LM head, ours and others'.

    python bench/loss.py                                    CPU: H 576, V 49152, fp32 and bf16
    python bench/loss.py --shape 896,151936 --rounds 2      another head
    python bench/loss.py --scaling                          ours alone, 1k to 64k tokens
    python bench/loss.py --device cuda --out bench/results/

Steps are checked before they are timed. Providers take turns, one call each in a round; figures are
medians. Costs are per active token: a token with an advantage other than 0. The last line of
standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo

from measure import environment, measure
from report import bar_table, bars, case_table, save, show, summary
from steps.batch import Batch, Case, make_batch
from steps.options import make_cases, parse, providers_of
from steps.providers import Provider

# Greatest errors of a step that is timed; beyond them it computes another function. rms of
# log-probs in nats, relative error of gradients, error of the loss. bf16 logits of 32 to 64 are off
# by up to 0.125 each: a provider that only rounds so passes, and its error is shown.
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.2}
NO_TIME = "the time budget was used up"


@dataclass(kw_only=True)
class Row:
    """A provider in a case.

    status: ok, wrong, absent (not installed), failed (it raised) or skipped (no time left).
    """

    provider: Provider
    status: str = "ok"
    reason: str = ""
    errors: dict[str, float | None] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peaks: list[int | None] = field(default_factory=list)  # bytes above what was in use before
    result_bytes: int = 0  # bytes of the gradients, which are part of the peak

    def attempt(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call it. What it raises is its result: it is other people's code on unknown hardware."""
        try:
            return call(*arguments)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self.status = "absent" if isinstance(error, ImportError) else "failed"
            self.reason = f"{type(error).__name__}: {lines[0][:150]}"
            return None

    def skip(self) -> None:
        self.status = "skipped"
        self.reason = NO_TIME


def prepare(row: Row, batch: Batch, case: Case) -> Callable[[], Any] | None:
    """Build a provider's step, run it once and check it. Returns None if it must not be timed."""
    provider = row.provider
    step = row.attempt(provider.build, batch)
    result: Any = row.attempt(step) if step else None
    if row.status == "ok" and provider.objective != "none":
        logprobs = result.logprobs
        if provider.logprobs is not None:
            logprobs = row.attempt(provider.logprobs, batch)
        _check(row, batch, case, result, logprobs)
    return step if row.status == "ok" else None


def _check(row: Row, batch: Batch, case: Case, result: Any, logprobs: torch.Tensor | None) -> None:
    """Compare a step's result with the truth."""
    row.result_bytes = result.dhidden.nbytes + result.dweight.nbytes
    row.errors = batch.errors(
        row.provider.objective, result.loss, logprobs, result.dhidden, result.dweight
    )
    bound = BOUNDS[case.dtype]
    excesses = [
        f"{name} {error:.2g}"
        for name, error in row.errors.items()
        if name != "logprob_max" and error is not None and not error <= bound  # also nan
    ]
    if excesses and row.status == "ok":
        row.status = "wrong"
        row.reason = f"{', '.join(excesses)}; allowed {bound:g}"


def run_case(
    case: Case, options: argparse.Namespace, deadline: float
) -> tuple[int, int, list[Row]]:
    """Active tokens, bytes of a chunk of ours, and the row of each provider.

    Each provider runs once for its errors, then round after round for time and memory.
    """
    torch._dynamo.reset()  # at the ninth shape torch.compile would silently go back to eager
    device = torch.device(options.device)
    batch = make_batch(case, device)
    rows = [Row(provider=provider) for provider in providers_of(case, options)]
    start = time.monotonic()
    check_deadline = start + (deadline - start) / 2  # the other half is for timing
    steps = []
    for row in rows:
        if time.monotonic() > check_deadline:
            row.skip()
        elif (step := prepare(row, batch, case)) is not None:
            steps.append((row, step))
        if row.status == "failed" and device.type == "cuda":
            torch.cuda.empty_cache()
        _log(f"  {row.provider.name}: {row.reason or 'checked'}")
    for number in range(options.rounds):
        for row, step in steps:
            is_late = time.monotonic() > deadline
            has_enough = number >= 2 and sum(row.seconds) > options.seconds
            if row.status == "ok" and not is_late and not has_enough:
                _time(row, step, device, number)
    for row in rows:
        if row.status == "ok" and not row.seconds:
            row.skip()
    return batch.active_tokens, batch.chunk_bytes, rows


def _time(row: Row, step: Callable[[], Any], device: torch.device, number: int) -> None:
    """Time a step once. Its result, gigabytes of gradients, is freed on return."""
    measured = row.attempt(measure, step, device)
    if measured is not None:
        _, seconds, peak = measured
        row.seconds.append(seconds)
        row.peaks.append(peak)
        _log(f"  round {number + 1}, {row.provider.name}: {seconds:.3g} s")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(options: argparse.Namespace) -> int:
    """Exit status: 1 if ours was wrong or raised."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    cases = make_cases(options)
    deadline = time.monotonic() + (options.budget or math.inf)
    summaries: list[dict[str, Any]] = []
    tables = []
    for number, case in enumerate(cases):
        _log(case.describe())
        seconds = (deadline - time.monotonic()) / (len(cases) - number)
        active_tokens, chunk_bytes, rows = run_case(case, options, time.monotonic() + seconds)
        summaries.append(summary(case, active_tokens, chunk_bytes, rows))
        tables.append(case_table(summaries[-1]))
        show(*tables[-1])
    document = {
        "environment": environment(device),
        "cases": summaries,
        "bars": bars(summaries, device.type),
    }
    tables.append(bar_table(document["bars"]))
    show(*tables[-1])
    if options.out:
        name = document["environment"]["device"].lower().replace(" ", "-")
        path = options.out if options.out.suffix else options.out / f"{name}.json"
        save(path, document, tables)
    print(json.dumps(document))
    statuses = [
        row["status"] for case in summaries for row in case["rows"] if row["provider"] == "ours"
    ]
    return int("wrong" in statuses or "failed" in statuses)


if __name__ == "__main__":
    sys.exit(main(parse(__doc__)))
