"""The numeric tests under other kernels of the libraries that multiply matrices.

    python tools/blas_matrix.py            all combinations, half an hour or more on two cores
    python tools/blas_matrix.py 2-threads  only the named ones

Another machine has another BLAS, which sums in another order. Environment variables choose among
the kernels that a library has for this CPU. A combination is run if a product, a sum or a softmax
has other bits under it than by default, or if it is named. Not every CPU obeys every variable: MKL
looks at MKL_ENABLE_INSTRUCTIONS on Intel CPUs only. tools/random_order.py stands for the machines
that no variable reaches. The ops also run in Triton's interpreter, which multiplies by numpy, if
numpy's products have other bits.

Prints a line for each combination: what has other bits, and how many tests passed and failed.
Exit status 1: some test failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
OPS = ["tests/kernels", "--confcutdir=tests/kernels", "--ignore=tests/kernels/answers"]
OPS += ["--ignore=tests/kernels/test_aot.py", "--ignore-glob=tests/kernels/test_ptx*"]
INTERPRETED = [*OPS, "-k", "reference or fp16 or halves or sure or sum_to_zero"]
TRAINER = [
    "tests/model/test_policy.py",
    "tests/sampling/test_hf.py",
    "tests/rewards/test_inputs.py",
    "tests/integrations/test_bare_loop.py",
    "tests/test_train.py::test_dropping_rollouts_without_gradient_changes_no_update",
]
OLDEST = {
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "OPENBLAS_CORETYPE": "Prescott",
}
COMBINATIONS: dict[str, dict[str, str]] = {
    "default": {},
    "2-threads": {"OMP_NUM_THREADS": "2"},
    # torch's BLAS. CBWR (conditional numerical reproducibility) also acts on AMD CPUs.
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "mkl-avx2": {"MKL_CBWR": "AVX2"},
    "mkl-sse42-intel": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "mkl-avx2-intel": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "mkl-avx512-intel": {"MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    # dhidden, and products of halves
    "onednn-sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "onednn-avx": {"ONEDNN_MAX_CPU_ISA": "AVX"},
    "onednn-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "onednn-avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    # torch's own sums and functions
    "aten-scalar": {"ATEN_CPU_CAPABILITY": "default"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    # numpy's BLAS, which the interpreter uses
    "openblas-prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "openblas-nehalem": {"OPENBLAS_CORETYPE": "Nehalem"},
    "openblas-sandybridge": {"OPENBLAS_CORETYPE": "Sandybridge"},
    "openblas-haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "openblas-zen": {"OPENBLAS_CORETYPE": "Zen"},
    "openblas-skylakex": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "oldest": OLDEST,
    "oldest-2-threads": OLDEST | {"OMP_NUM_THREADS": "2"},
    "random-order-1": {"SRT_ORDER_SEED": "1"},
    "random-order-2": {"SRT_ORDER_SEED": "2"},
    "random-order-3": {"SRT_ORDER_SEED": "3"},
}
PROBE = """
import hashlib, json, os, sys
import numpy as np, torch
if "SRT_ORDER_SEED" in os.environ:
    import random_order
    random_order.override_torch()
random = np.random.RandomState(0)
x = random.standard_normal((67, 517)).astype("float32")
w = random.standard_normal((331, 517)).astype("float32")
left, right = torch.from_numpy(x), torch.from_numpy(w)
results = {
    "mm": left @ right.T,
    "mm fp64": left.double() @ right.double().T,
    "mv": left @ right[0],
    "onednn": torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], None),
    "sum": left.sum(1),
    "softmax": left.softmax(1),
    "numpy": torch.from_numpy(x @ w.T),
}
print(json.dumps({k: hashlib.md5(v.numpy().tobytes()).hexdigest() for k, v in results.items()}))
"""


@dataclass
class Counts:
    passed: int = 0
    failed: int = 0

    def add(self, other: Counts) -> None:
        self.passed += other.passed
        self.failed += other.failed


def environment(variables: dict[str, str]) -> dict[str, str]:
    paths = [ROOT / "tools", ROOT, ROOT / "kernels"]
    defaults = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return os.environ | defaults | variables


def fingerprints(variables: dict[str, str]) -> dict[str, str] | None:
    """A hash for each kind of result; None if the CPU lacks the instructions."""
    command = [sys.executable, "-c", PROBE]
    probe = subprocess.run(command, env=environment(variables), capture_output=True, text=True)
    return json.loads(probe.stdout) if probe.returncode == 0 else None


def run_tests(arguments: list[str], variables: dict[str, str]) -> Counts:
    """Run pytest. Prints its output if a test fails."""
    plugin = ["-p", "random_order"] if "SRT_ORDER_SEED" in variables else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}"]
        run = subprocess.run(
            [*command, *plugin, *arguments],
            cwd=ROOT,
            env=environment(variables),
            capture_output=True,
            text=True,
        )
        if run.returncode != 0:
            print(run.stdout[-8000:], run.stderr[-2000:], sep="\n")
        if not report.is_file():
            return Counts(failed=1)
        suite = ElementTree.parse(report).getroot()[0]
    number = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    return Counts(passed=number["tests"] - failed - number["skipped"], failed=failed)


def run_combination(variables: dict[str, str], changed: list[str]) -> Counts:
    counts = Counts()
    if set(variables) != {"OPENBLAS_CORETYPE"}:  # which torch does not use
        counts.add(run_tests(OPS, variables))
        counts.add(run_tests(TRAINER, variables))
    if "numpy" in changed or "SRT_ORDER_SEED" in variables:
        counts.add(run_tests(INTERPRETED, variables | {"TRITON_INTERPRET": "1"}))
    return counts


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(COMBINATIONS))
    if unknown:
        print(f"combination: expected some of {', '.join(COMBINATIONS)}, got {', '.join(unknown)}")
        return 2
    base = fingerprints({})
    assert base is not None
    has_failures = False
    for name in names or COMBINATIONS:
        variables = COMBINATIONS[name]
        bits = fingerprints(variables)
        if bits is None:
            print(f"{name:22} not run: this CPU lacks the instructions", flush=True)
            continue
        changed = [key for key in base if bits[key] != base[key]]
        if not changed and name != "default" and not names:
            print(f"{name:22} not run: the same bits as by default", flush=True)
            continue
        start = time.monotonic()
        counts = run_combination(variables, changed)
        has_failures = has_failures or counts.failed > 0
        print(
            f"{name:22} {counts.passed:4} passed {counts.failed:3} failed "
            f"{time.monotonic() - start:5.0f} s  other bits: {', '.join(changed) or 'none'}",
            flush=True,
        )
    return int(has_failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
