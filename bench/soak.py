"""Long and broken runs of a tiny model: does a run leak, and does a kill lose anything?

    python bench/soak.py --out bench/results/soak.json    everything: about 20 minutes
    python bench/soak.py --steps 200 --kills 2            a short one

1. A long run in one process and on two ranks, and one of a quarter of the steps on 2 x 2 ranks
   (HSDP). Memory and file handles of each process are read from /proc every second. They must not
   grow from a quarter of the run to its end.
2. A run that is killed (SIGKILL, all its processes) at random moments and resumed each time, in one
   process and on two ranks. Its final weights must have the bits of the undisturbed run's.

Prints a table. --out writes JSON, and a Markdown table beside it. Exit status 1 if something grew
or differs. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from measure import environment
from report import Table, save, show
from srt_fast.config import override, to_dict
from srt_fast.config.recipes import quickstart
from srt_fast.files import read_rows
from srt_fast.quickstart import build_model, build_tokenizer
from srt_fast.run.progress import RunProgress

MAX_GROWTH = 0.01
"""Growth of memory that counts as none. File handles must not grow at all."""
POLL_SECONDS = 1.0
KILLED_STEPS = 400
"""Steps of a run that is killed."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many processes a run has."""

    name: str
    ranks: int = 1
    replicas: int = 1


ONE_PROCESS = Shape(name="one process")
TWO_RANKS = Shape(name="two ranks", ranks=2)
HSDP = Shape(name="2 x 2 ranks (HSDP)", ranks=4, replicas=2)


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """Medians of a tenth of the run, of the process that grew most."""

    shape: str
    steps: int
    seconds: float
    mib_at_quarter: float
    mib_at_end: float
    handles_at_quarter: float
    handles_at_end: float

    @property
    def is_flat(self) -> bool:
        grew = self.mib_at_end > self.mib_at_quarter * (1 + MAX_GROWTH)
        return not grew and self.handles_at_end <= self.handles_at_quarter


@dataclass(frozen=True, kw_only=True)
class KilledRun:
    """A run that was killed and resumed again and again."""

    shape: str
    steps: int
    kills: int
    has_same_bits: bool


def main() -> int:
    """Run it. Returns the exit status."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as temporary, RunProgress() as progress:
        folder = Path(temporary)
        _save_model(folder / "model")
        progress.phase("soak", 5, ["running"])
        long_runs = []
        for shape in (ONE_PROCESS, TWO_RANKS, HSDP):
            steps = options.steps // 4 if shape is HSDP else options.steps
            progress.update(len(long_runs), running=f"{steps} steps, {shape.name}")
            long_runs.append(_long_run(folder, shape, steps))
        killed_runs = []
        for shape in (ONE_PROCESS, TWO_RANKS):
            progress.update(3 + len(killed_runs), running=f"{options.kills} kills, {shape.name}")
            killed_runs.append(_killed_run(folder, shape, options.kills, options.seed))
        progress.update(5, running="done")
    result = {
        "environment": environment(torch.device("cpu")),
        "long_runs": [asdict(run) | {"is_flat": run.is_flat} for run in long_runs],
        "killed_runs": [asdict(run) for run in killed_runs],
    }
    tables = _tables(long_runs, killed_runs)
    for table in tables:
        show(*table)
    if options.out:
        save(Path(options.out), result, tables)
    print(json.dumps(result))
    is_good = all(run.is_flat for run in long_runs)
    return 0 if is_good and all(run.has_same_bits for run in killed_runs) else 1


# ---- the long run ----


def _long_run(folder: Path, shape: Shape, steps: int) -> LongRun:
    run_dir = folder / f"long-{shape.ranks}"
    started_at = time.monotonic()
    process = _start(folder, shape, run_dir, steps, checkpoint_every=max(steps // 8, 1))
    samples: dict[int, list[tuple[float, int]]] = {}  # of each process: MiB and file handles
    while process.poll() is None:
        for worker in _workers(process.pid, shape):
            with worker_ends():
                mib = worker.memory_info().rss / 2**20
                samples.setdefault(worker.pid, []).append((mib, worker.num_fds()))
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"error: the run on {shape.name} ended with {process.returncode}")
    figures = [_figures(rows) for rows in samples.values() if len(rows) >= 20]
    if not figures:
        raise SystemExit("error: --steps: expected a run of at least 20 seconds, got a shorter one")
    worst = max(figures, key=lambda row: row["mib_at_end"] / row["mib_at_quarter"])
    seconds = round(time.monotonic() - started_at, 1)
    return LongRun(shape=shape.name, steps=steps, seconds=seconds, **worst)


def _figures(rows: list[tuple[float, int]]) -> dict[str, float]:
    """Medians of a tenth of the rows: at a quarter, and before the report is drawn."""
    tenth = max(len(rows) // 10, 1)
    quarter = rows[len(rows) // 4 : len(rows) // 4 + tenth]
    end = rows[-2 * tenth : -tenth]
    return {
        "mib_at_quarter": round(statistics.median(mib for mib, _ in quarter), 1),
        "mib_at_end": round(statistics.median(mib for mib, _ in end), 1),
        "handles_at_quarter": statistics.median(handles for _, handles in quarter),
        "handles_at_end": statistics.median(handles for _, handles in end),
    }


def _workers(pid: int, shape: Shape) -> list[psutil.Process]:
    """The processes that train: torchrun's children, or the process itself."""
    with worker_ends():
        parent = psutil.Process(pid)
        return [parent] if shape.ranks == 1 else parent.children()
    return []


@contextlib.contextmanager
def worker_ends() -> Iterator[None]:
    """Inside, a process may end while it is looked at."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        yield


# ---- the run that is killed ----


def _killed_run(folder: Path, shape: Shape, kills: int, seed: int) -> KilledRun:
    rng = random.Random(seed)
    whole = folder / f"whole-{shape.ranks}"
    process = _start(folder, shape, whole, KILLED_STEPS, checkpoint_every=3)
    if process.wait():
        raise SystemExit(f"error: the run on {shape.name} ended with {process.returncode}")
    killed = folder / f"killed-{shape.ranks}"
    count = 0
    while count < kills:
        process = _start(folder, shape, killed, KILLED_STEPS, checkpoint_every=3)
        # Steps 0: before the first step. A quarter of the steps is left for the last attempt.
        steps = rng.randrange(round(1.5 * KILLED_STEPS / kills))
        _wait_for_rows(process, killed, steps)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is not None:
            break
        _kill(process)
        count += 1
    process = _start(folder, shape, killed, KILLED_STEPS, checkpoint_every=3)
    if process.wait():
        raise SystemExit(f"error: a resumed run ended with {process.returncode}")
    weights = "model/model.safetensors"
    has_same_bits = (whole / weights).read_bytes() == (killed / weights).read_bytes()
    steps_taken = [
        row["step"] for row in read_rows(killed / "metrics.jsonl") if row["kind"] == "train"
    ]
    assert steps_taken == list(range(1, KILLED_STEPS + 1)), "a step is missing or doubled"
    return KilledRun(shape=shape.name, steps=KILLED_STEPS, kills=count, has_same_bits=has_same_bits)


def _wait_for_rows(process: subprocess.Popen, run_dir: Path, steps: int) -> None:
    """Wait until the run has written so many rows of steps, or has ended. At least its start."""
    metrics = run_dir / "metrics.jsonl"
    first_size = None
    rows = 0
    while process.poll() is None and rows < steps:
        if metrics.is_file():
            text = metrics.read_bytes()
            # A resume rewrites the file first, without the rows of later steps.
            if first_size is None or len(text) < first_size:
                first_size = len(text)
            rows = text[first_size:].count(b'"kind": "train"')
        time.sleep(0.02)


def _kill(process: subprocess.Popen) -> None:
    """SIGKILL for a process and all its descendants."""
    with worker_ends():
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        for member in family:
            with worker_ends():
                member.send_signal(signal.SIGKILL)
        psutil.wait_procs(family)
    process.wait()


# ---- runs ----


def _save_model(folder: Path) -> None:
    """A tiny model with sharp distributions: votes agree, and steps train."""
    tokenizer = build_tokenizer()
    size = {"warm_start.hidden_size": 32, "warm_start.layers": 2}
    model = build_model(override(quickstart(), size), tokenizer)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _start(
    folder: Path, shape: Shape, run_dir: Path, steps: int, *, checkpoint_every: int
) -> subprocess.Popen:
    """Start a run, or resume it if its folder has a configuration."""
    changes: dict[str, Any] = {
        "model": {"path": str(folder / "model"), "device": "cpu"},
        "run_dir": str(run_dir),
        "task": {"params": {"max_digits": 1}, "answer_rule": "whole"},
        "sampling": {"group_size": 4, "max_new_tokens": 3, "engine": "hf"},
        "train": {"steps": steps, "prompts_per_step": 6, "lr": 1e-4},
        "reward": {"kind": "ema", "params": {"decay": 0.9, "final_decay": 0.9}},
        "evaluation": {"every": 50, "prompts": 8, "samples": 2},
        "monitor": {"every": 5, "prompts": 4, "samples": 2},
        "checkpoint": {"every": checkpoint_every, "keep": 2},
        "dist.replicas": shape.replicas,
    }
    config_file = folder / f"{run_dir.name}.yaml"
    config_file.write_text(yaml.safe_dump(to_dict(override(quickstart(), changes))))
    is_begun = (run_dir / "config.json").is_file()
    arguments = ["train", "--resume", str(run_dir)] if is_begun else ["train", str(config_file)]
    command = [sys.executable, "-m"]
    if shape.ranks > 1:
        ranks = f"--nproc-per-node={shape.ranks}"
        command += ["torch.distributed.run", "--standalone", ranks, "-m"]
    with open(folder / f"{run_dir.name}.log", "a") as log:
        return subprocess.Popen(
            [*command, "srt_fast", *arguments],
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


# ---- results ----


def _tables(long_runs: list[LongRun], killed_runs: list[KilledRun]) -> list[Table]:
    long_lines = [
        [
            run.shape,
            str(run.steps),
            f"{run.seconds:.0f}",
            f"{run.mib_at_quarter:.1f}",
            f"{run.mib_at_end:.1f}",
            f"{run.handles_at_quarter:.0f}",
            f"{run.handles_at_end:.0f}",
            "yes" if run.is_flat else "**no**",
        ]
        for run in long_runs
    ]
    long_columns = ["run", "steps", "seconds", "MiB at 25 %", "MiB at the end"]
    long_columns += ["handles at 25 %", "handles at the end", "flat"]
    killed_lines = [
        [run.shape, str(run.steps), str(run.kills), "yes" if run.has_same_bits else "**no**"]
        for run in killed_runs
    ]
    killed_columns = ["run", "steps", "kills", "bits of the undisturbed run"]
    return [
        ("Long runs", long_columns, long_lines),
        ("Killed and resumed runs", killed_columns, killed_lines),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000, help="of the long runs (default: 2000)")
    parser.add_argument("--kills", type=int, default=20, help="of each killed run (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--out", metavar="FILE.json", help="write JSON and Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(main())
