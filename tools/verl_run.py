r"""A whole run of verl on a CPU: our loss beside verl's, and a model that its own vote improves.

    make verl-run

Two runs of verl's trainer (verl.trainer.main_ppo), one after the other: Ray on this machine, an
FSDP2 actor on gloo, vLLM's CPU server, and verl's weight transfer.

1. "ours": majority_grpo, answer_score, srt_vanilla and the fused forward. The start is a small
   embedded model. The training prompts have no gold answers. verl keeps the rollouts of the first
   steps in files, and samples held-out prompts before and after training.
2. "verl": the loss vanilla and verl's own forward pass, from the same model, seed and rollouts, for
   these first steps.

The exit code is 1 if one of these does not hold:

- In each shared step, losses differ by at most TOLERANCE, and gradient norms by this share of them.
  A step's loss depends on the weights that the steps before it made.
- Ratios are clipped in these steps.
- In each step, probabilities of the samples by vLLM and by the actor differ by at most
  MAX_PROBABILITY_GAP: vLLM has the weights of the step.
- Held-out pass@1 rises by more than LEAST_RISE standard errors.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from measure import environment
from report import Table, save, show
from verl_cpu.inputs import Sizes, settings, write_inputs

ROOT = Path(__file__).parent.parent
PACKAGES = ("ray", "TransferQueue", "tensordict", "hydra-core")
TOLERANCE = 1e-5
MAX_PROBABILITY_GAP = 1e-3
LEAST_RISE = 3.0
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "tools")),
    "VERL_USE_EXTERNAL_MODULES": "verl_cpu.platform,srt_fast.integrations.verl",
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",  # the name that verl registers its FSDP engine for
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # vLLM compiles small functions in its first step, which is slow on a busy machine.
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "3600",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 by default: other processes would starve the run
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, kw_only=True)
class SharedStep:
    """One step in both runs, on the same rollouts."""

    step: int
    loss: float
    verl_loss: float
    gradient_norm: float
    verl_gradient_norm: float
    clip_fraction: float

    @property
    def loss_gap(self) -> float:
        return abs(self.loss - self.verl_loss)

    @property
    def gradient_gap(self) -> float:
        """Relative."""
        return abs(self.gradient_norm / self.verl_gradient_norm - 1)


@dataclass(frozen=True, kw_only=True)
class Rise:
    """Held-out pass@1. The standard error is of the mean of the prompts' differences."""

    before: float
    after: float
    standard_error: float
    prompts: int
    samples: int

    @property
    def standard_errors(self) -> float:
        return (self.after - self.before) / self.standard_error


def main() -> int:
    """Run it. Returns the exit code."""
    options = _parser().parse_args()
    sizes = Sizes(
        prompts=options.prompts,
        rollouts=8,
        held_out=options.held_out,
        held_out_samples=4,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory(prefix="verl-run-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):  # verl would take old rollouts
            raise SystemExit(f"error: --folder: expected an empty folder, got {folder}")
        write_inputs(folder, sizes, options.steps)
        shared = options.shared_steps
        ours, ours_seconds = _run(folder, "ours", sizes, options.steps, shared)
        verls, verl_seconds = _run(folder, "verl", sizes, shared, shared)
        rise = read_rise(folder / "held_out", options.steps)
    steps = [_shared_step(step, ours[step], verls[step]) for step in range(1, shared + 1)]
    probability_gap = _worst(
        row["training/rollout_probs_diff_max"] for row in ours.values() if _is_train(row)
    )
    result = {
        "environment": _environment(),
        "sizes": asdict(sizes),
        "steps": options.steps,
        "seconds": {"ours": ours_seconds, "verl": verl_seconds},
        "seconds_per_step": _seconds_per_step(ours),
        "shared_steps": [asdict(step) for step in steps],
        "probability_gap": probability_gap,
        "rise": asdict(rise),
    }
    check_table = checks(steps, probability_gap, rise)
    tables = [_step_table(steps), check_table]
    for table in tables:
        show(*table)
    if options.out:
        save(options.out, result, tables)
    print(json.dumps(result))
    return int(any(line[-1] != "holds" for line in check_table[2]))


# ---- the runs ----


def _run(
    folder: Path, name: str, sizes: Sizes, steps: int, shared: int
) -> tuple[dict[int, dict[str, Any]], float]:
    """One run of verl's trainer: its metrics of each step, and seconds. The log is kept beside."""
    print(f"verl, run {name!r}: {steps} steps  (log: {folder / name}.log)", flush=True)
    metrics = folder / f"{name}.jsonl"
    arguments = settings(folder, sizes, is_ours=name == "ours", steps=steps, shared=shared)
    variables = ENVIRONMENT | {
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    started_at = time.monotonic()
    with open(folder / f"{name}.log", "w") as log:
        status = subprocess.run(
            [sys.executable, "-m", "verl.trainer.main_ppo", *arguments],
            cwd=folder,
            env=os.environ | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status:
        tail = (folder / f"{name}.log").read_text().splitlines()[-40:]
        raise SystemExit("\n".join([*tail, f"error: verl's run {name!r} ended with {status}"]))
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {row["step"]: row["data"] for row in rows}, round(time.monotonic() - started_at, 1)


def _is_train(row: dict[str, Any]) -> bool:
    return "actor/grad_norm" in row


def _seconds_per_step(rows: dict[int, dict[str, Any]]) -> float:
    """The median, without the validation."""
    seconds = [row["timing_s/step"] for row in rows.values() if _is_train(row)]
    return round(statistics.median(seconds), 2)


def _shared_step(step: int, ours: dict[str, Any], verls: dict[str, Any]) -> SharedStep:
    return SharedStep(
        step=step,
        loss=ours["actor/pg_loss"],
        verl_loss=verls["actor/pg_loss"],
        gradient_norm=ours["actor/grad_norm"],
        verl_gradient_norm=verls["actor/grad_norm"],
        clip_fraction=ours["actor/pg_clipfrac"],
    )


def read_rise(folder: Path, steps: int) -> Rise:
    """From verl's files of held-out samples: step 0 and the last step."""
    before, after = (_pass1_of_prompts(folder / f"{step}.jsonl") for step in (0, steps))
    assert before.keys() == after.keys(), "held-out prompts differ"
    differences = [after[prompt][0] - before[prompt][0] for prompt in before]
    return Rise(
        before=statistics.fmean(pass1 for pass1, _ in before.values()),
        after=statistics.fmean(pass1 for pass1, _ in after.values()),
        standard_error=statistics.stdev(differences) / len(differences) ** 0.5,
        prompts=len(before),
        samples=sum(samples for _, samples in before.values()) // len(before),
    )


def _pass1_of_prompts(path: Path) -> dict[str, tuple[float, int]]:
    """Prompt -> share of right samples, samples."""
    samples: dict[str, list[float]] = defaultdict(list)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        samples[row["input"]].append(row["acc"])
    return {prompt: (statistics.fmean(values), len(values)) for prompt, values in samples.items()}


# ---- results ----


def _environment() -> dict[str, Any]:
    result = environment(torch.device("cpu"))
    result["versions"] |= {name: version(name) for name in PACKAGES}
    return result


def _step_table(steps: list[SharedStep]) -> Table:
    columns = ["step", "loss, ours", "loss, verl", "gap", "gradient norm, ours", "verl"]
    columns += ["relative gap", "clipped"]
    lines = [
        [
            str(step.step),
            f"{step.loss:.7f}",
            f"{step.verl_loss:.7f}",
            f"{step.loss_gap:.1e}",
            f"{step.gradient_norm:.6f}",
            f"{step.verl_gradient_norm:.6f}",
            f"{step.gradient_gap:.1e}",
            f"{step.clip_fraction:.4f}",
        ]
        for step in steps
    ]
    return "Our loss and verl's, on the same rollouts", columns, lines


def _worst(gaps: Iterable[float]) -> float:
    """The largest, and nan before all."""
    return max(gaps, key=lambda gap: (math.isnan(gap), gap))


def checks(steps: list[SharedStep], probability_gap: float, rise: Rise) -> Table:
    """What must hold, a line each. The last cell of a line says whether it does."""
    loss_gap = _worst(step.loss_gap for step in steps)
    gradient_gap = _worst(step.gradient_gap for step in steps)
    clip_fraction = max(step.clip_fraction for step in steps)
    error = f"{rise.standard_errors:.1f} standard errors of {rise.standard_error:.4f}"
    rows = [
        ("loss, ours - verl", f"{loss_gap:.1e}", f"<= {TOLERANCE}", loss_gap <= TOLERANCE),
        (
            "gradient norm, ours / verl - 1",
            f"{gradient_gap:.1e}",
            f"<= {TOLERANCE}",
            gradient_gap <= TOLERANCE,
        ),
        ("clipped ratios", f"{clip_fraction:.4f}", "> 0", clip_fraction > 0),
        (
            "probabilities, vLLM - actor",
            f"{probability_gap:.1e}",
            f"<= {MAX_PROBABILITY_GAP}",
            probability_gap <= MAX_PROBABILITY_GAP,
        ),
        (
            "held-out pass@1",
            f"{rise.before:.3f} to {rise.after:.3f}: {error}",
            f"> {LEAST_RISE} standard errors",
            rise.standard_errors > LEAST_RISE,
        ),
    ]
    lines = [[*cells, "holds" if holds else "**FAILS**"] for *cells, holds in rows]
    return "Checks", ["what", "measured", "wanted", ""], lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=15, help="of our run (default: 15)")
    parser.add_argument("--shared-steps", type=int, default=4, help="in both runs (default: 4)")
    parser.add_argument("--prompts", type=int, default=32, help="of a step (default: 32)")
    parser.add_argument("--held-out", type=int, default=128, help="prompts (default: 128)")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and samples (default: 1)")
    parser.add_argument("--folder", type=Path, help="of all files (default: a temporary one)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write JSON and Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(main())
