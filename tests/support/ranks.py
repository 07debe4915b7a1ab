"""Several ranks under torchrun, for tests: `run_ranks`."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support.paths import ROOT

PYTHON_PATH = (ROOT, ROOT / "kernels", ROOT / "tests")
STOP_SECONDS = 45
"""torchrun kills a rank that ignores SIGTERM for 30 seconds."""


class RanksFailed(AssertionError):
    """A rank failed, or the time was over. The message has the output of all ranks.

    returncode: of torchrun. None: the time was over. outputs: standard output of each rank.
    """

    def __init__(self, reason: str, returncode: int | None, outputs: list[str], log: str):
        super().__init__(f"{reason}\n{log}")
        self.returncode = returncode
        self.outputs = outputs


def run_ranks(
    task: Path | Callable[..., None],
    world_size: int,
    *args: Any,
    timeout: float,
    options: Sequence[str] = (),
) -> list[str]:
    """Run a script or a function on `world_size` ranks of one node. Each has one thread.

    task: a script, which receives `args` as its command line, or a function at the top level of a
        file, which is called with `args`. They must survive JSON. The ranks do not load conftest.py
        and start no process group.
    timeout: seconds for all of it.
    options: of torchrun, such as "--max-restarts=1".

    Returns the standard output of each rank, over all its restarts. Raises RanksFailed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--redirects=3"]
        command += [f"--nproc-per-node={world_size}", f"--log-dir={folder}", *options]
        command += _task_command(task, args)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, PYTHON_PATH)),
        }
        with open(Path(folder) / "torchrun.log", "w+") as agent_log:
            torchrun = subprocess.Popen(
                command, env=environment, stdout=agent_log, stderr=subprocess.STDOUT
            )
            returncode = _wait(torchrun, timeout)
            agent_log.seek(0)
            agent_text = agent_log.read()
        outputs = [_read(folder, rank, "stdout") for rank in range(world_size)]
        if returncode == 0:
            return outputs
        parts = ["-- torchrun", agent_text]
        for rank, output in enumerate(outputs):
            parts += [f"-- rank {rank}", output, _read(folder, rank, "stderr")]
    ending = (
        f"{timeout:g} s were over" if returncode is None else f"torchrun ended with {returncode}"
    )
    raise RanksFailed(f"{world_size} ranks: {ending}", returncode, outputs, "\n".join(parts))


def _task_command(task: Path | Callable[..., None], args: Sequence[Any]) -> list[str]:
    if isinstance(task, Path):
        return [str(task), *map(str, args)]
    file = inspect.getsourcefile(task)
    assert file is not None
    return ["--module", "support.ranks", file, task.__name__, json.dumps(args)]


def _wait(torchrun: subprocess.Popen, timeout: float) -> int | None:
    """The exit code. None: the time was over, and torchrun and its ranks were stopped."""
    try:
        return torchrun.wait(timeout)
    except subprocess.TimeoutExpired:
        torchrun.terminate()  # torchrun stops its ranks
    try:
        torchrun.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        torchrun.kill()
        torchrun.wait()
    return None


def _read(folder: str, rank: int, stream: str) -> str:
    """A rank's output of all restarts, in order. torchrun writes RUN/attempt_N/RANK/stdout.log."""
    files = Path(folder).glob(f"*/attempt_*/{rank}/{stream}.log")
    return "".join(file.read_text(errors="replace") for file in sorted(files))


def _call(file: str, function: str, args: str) -> None:
    """What a rank does: import the file and call its function."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    getattr(module, function)(*json.loads(args))


if __name__ == "__main__":
    _call(*sys.argv[1:])
