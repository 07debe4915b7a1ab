"""What ten minutes on a GPU are for: tests, tables and a short run.

    python bench/gpu.py                 or `make gpu`
    python bench/gpu.py --dry           or `make gpu DRY=1`: rehearses it without a GPU

Stages run in order of worth, each with its time limit. If one fails or takes too long, the others
run, and the exit status is 1. A stage whose packages, data or GPUs are missing does not run, and is
listed with the reason. Nothing is installed.

A rehearsal collects the tests, runs the benches on a few tokens on the CPU, builds the run's
configuration, traces the model's steps, and renders the reports from made-up figures. These are
marked as made up. They go to a temporary folder, which is deleted.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu_stages.stages import BENCH, ROOT, Command, Stage, make_stages
from report import show

REHEARSAL_SECONDS = 600  # of each stage, on a slow CPU with other work


@dataclass(frozen=True, kw_only=True)
class Outcome:
    stage: str
    result: str  # "ok", or what went wrong
    seconds: float
    limit: int
    is_failure: bool


def run_stage(stage: Stage, is_dry: bool) -> Outcome:
    """Run its commands up to the first that fails."""
    limit = REHEARSAL_SECONDS if is_dry else stage.seconds
    start = time.monotonic()
    result = stage.missing(gpus=stage.gpus if is_dry else torch.cuda.device_count())
    is_failure = False
    if not result:
        for command in stage.rehearsals if is_dry else stage.commands:
            left = limit - (time.monotonic() - start)
            result = run(command, {} if is_dry else dict(stage.environment), left)
            is_failure = result != "ok"
            if is_failure:
                break
    return Outcome(
        stage=stage.name,
        result=result,
        seconds=time.monotonic() - start,
        limit=limit,
        is_failure=is_failure,
    )


def run(command: Command, environment: dict[str, str], seconds: float) -> str:
    """Run a command in the repository: "ok" or what went wrong. Ends it, with its children."""
    paths = [str(ROOT), str(ROOT / "kernels"), str(BENCH), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ) | {"PYTHONPATH": ":".join(paths)} | environment
    print(f"\n$ {' '.join(command)}", flush=True)
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            status = process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "out of time"
    return "ok" if status == 0 else f"exit status {status}"


def run_stages(stages: list[Stage], is_dry: bool) -> int:
    """Run all of them and print a table. The exit status: 1 if one failed."""
    outcomes = [run_stage(stage, is_dry) for stage in stages]
    lines = [
        [outcome.stage, outcome.result, f"{outcome.seconds:.0f}", str(outcome.limit)]
        for outcome in outcomes
    ]
    title = "Rehearsal: nothing was measured" if is_dry else "Stages"
    show(title, ["stage", "result", "seconds", "at most"], lines)
    return int(any(outcome.is_failure for outcome in outcomes))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dry", action="store_true", help="rehearse without a GPU")
    add("--stages", nargs="+", metavar="NAME", help="only these; a beginning will do")
    add("--out", type=Path, default=BENCH / "results", help="folder of the tables")
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        parser.error("device: expected a GPU, got none; --dry rehearses without one")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        stages = make_stages(scratch if options.dry else options.out.resolve(), scratch)
        beginnings = tuple(options.stages or [""])
        chosen = [stage for stage in stages if stage.name.startswith(beginnings)]
        if not chosen:
            names = ", ".join(stage.name for stage in stages)
            parser.error(f"--stages: expected beginnings of {names}, got {options.stages}")
        return run_stages(chosen, options.dry)


if __name__ == "__main__":
    sys.exit(main())
