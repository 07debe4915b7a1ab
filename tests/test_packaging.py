"""The wheel: its files, and its use in an environment of its own, with and without the trainer.

The environment's torch, and the trainer's packages, are those of the environment that tests run in.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from support.paths import ROOT

TRAINER_PACKAGES = ("matplotlib", "pydantic", "rich", "tensorboard", "transformers", "tyro", "yaml")

BLOCK_TRAINER_PACKAGES = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {TRAINER_PACKAGES}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""

USE_OPS = """
import torch
import srt_fast.integrations.liger
from srt_kernels import group_advantage
rewards = torch.tensor([1.0, 0.0, 1.0, 1.0])
print(group_advantage(rewards, torch.tensor([0, 2, 4], dtype=torch.int32), kind="mean").tolist())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because setuptools writes build/ and *.egg-info beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("srt_fast", "kernels", "tests", "bench", "tools"):
        ignore = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    [path] = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment with nothing but the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    install = [*pip, "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return folder


def run(command: list[str], *import_folders: Path) -> subprocess.CompletedProcess:
    """Run in an environment that also imports from these folders and from our site-packages.

    Our editable install of srt-fast is a .pth file, which PYTHONPATH does not read.
    """
    folders = [*import_folders, sysconfig.get_path("purelib")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(str(folder) for folder in folders)}
    return subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True)


def test_wheel_has_the_two_packages_and_nothing_else(wheel):
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = set()
    for parent, package in ((ROOT, "srt_fast"), (ROOT / "kernels", "srt_kernels")):
        for pattern in ("*.py", "py.typed"):
            paths = (parent / package).rglob(pattern)
            expected |= {path.relative_to(parent).as_posix() for path in paths}
    assert files == expected
    assert {"srt_fast/py.typed", "srt_kernels/py.typed"} <= files
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_command_of_the_installed_wheel(environment):
    python = str(environment / "bin" / "python")
    for command in ([str(environment / "bin" / "srt-fast")], [python, "-m", "srt_fast"]):
        result = run([*command, "--help"])
        assert result.returncode == 0, result.stderr
        assert "usage: srt-fast COMMAND" in result.stdout
    result = run([python, "-c", "import srt_fast, srt_kernels; print(srt_fast.__file__)"])
    assert result.stdout.startswith(str(environment)), result.stderr


def test_ops_need_none_of_the_trainers_packages(environment, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCK_TRAINER_PACKAGES)
    python = str(environment / "bin" / "python")
    ops = run([python, "-c", USE_OPS], tmp_path)
    assert ops.stdout.strip() == "[0.5, -0.5, 0.0, 0.0]", ops.stderr
    command = run([str(environment / "bin" / "srt-fast"), "--help"], tmp_path)
    assert command.returncode == 1
    [line] = command.stderr.splitlines()
    assert line.startswith("error: ") and "pip install 'srt-fast[train]'" in line
