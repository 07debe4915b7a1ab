"""What clusters do to a run on several ranks: kills, hangs, signals, another number of ranks."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srt_fast.cli import main
from srt_fast.config import Config, from_dict, override, to_dict
from srt_fast.distributed.world import World
from srt_fast.files import read_rows
from srt_fast.train import Trainer
from support.models import sharpen
from support.ranks import RanksFailed, run_ranks

LR = 1e-3


@pytest.fixture
def config(tiny_config, tiny_model, tmp_path) -> Config:
    """Six steps of a model with sharp distributions: votes agree, and steps train."""
    changes = {
        "model.path": sharpen(tiny_model, tmp_path / "sharp"),
        "reward": {"kind": "ema", "params": {"decay": 0.5, "final_decay": 0.5}},
        "train": {"lr": LR, "steps": 6},
        "checkpoint": {"every": 2, "keep": 9},
        "dist.timeout": 10,
    }
    return override(tiny_config, changes)


def train_task(config: dict) -> None:
    Trainer(from_dict(config), quiet=True).train()


def killed_task(config: dict, step: int) -> None:
    """A run. In this step of the first attempt, rank 1 is killed."""
    train_step = Trainer.train_step

    def break_once(trainer: Trainer) -> None:
        world: World = trainer.world
        if trainer.step == step and world.rank == 1 and world.restarts == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        train_step(trainer)

    Trainer.train_step = break_once
    train_task(config)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same_bits(first: Path, second: Path) -> None:
    expected = weights(second)
    for name, weight in weights(first).items():
        assert weight.equal(expected[name]), name


def test_a_restarted_run_ends_in_the_same_bits(config, tmp_path):
    """A rank is killed. torchrun restarts all ranks, and they go on from the last checkpoint.

    A rank that hangs ends the others (test_world.py). Then torchrun does the same.
    """
    whole = override(config, {"run_dir": str(tmp_path / "whole")})
    run_ranks(train_task, 2, to_dict(whole), timeout=300)
    killed = override(config, {"run_dir": str(tmp_path / "killed")})
    options = ("--max-restarts=1",)
    run_ranks(killed_task, 2, to_dict(killed), 5, options=options, timeout=300)
    assert_same_bits(tmp_path / "killed", tmp_path / "whole")
    rows = read_rows(tmp_path / "killed" / "metrics.jsonl")
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]


def signalled_task(config_file: str, step: int) -> None:
    """`srt-fast train` on ranks. torchrun receives SIGTERM in this step."""
    train_step = Trainer.train_step
    began = threading.Event()

    def begin(trainer: Trainer) -> None:
        if trainer.step == step and not began.is_set():
            began.set()
            if trainer.world.is_main:
                os.kill(os.getppid(), signal.SIGTERM)
            while not trainer.run.interrupts.has_signal:
                time.sleep(0.01)
            print(f"signal at {time.time()}", flush=True)
        train_step(trainer)

    Trainer.train_step = begin
    exit_code = main(["train", config_file])
    print(f"exit {exit_code} at {time.time()}", flush=True)
    raise SystemExit(exit_code)


def test_sigterm_saves_and_another_number_of_ranks_continues(config, tmp_path):
    """All ranks agree to stop, save within a second or so, and say how to continue, once."""
    whole = override(config, {"run_dir": str(tmp_path / "whole")})
    Trainer(whole, quiet=True).train()
    folder = tmp_path / "stopped"
    config_file = tmp_path / "config.yaml"
    config_file.write_text(json.dumps(to_dict(override(config, {"run_dir": str(folder)}))))
    with pytest.raises(RanksFailed) as failure:
        run_ranks(signalled_task, 2, str(config_file), 3, timeout=300)
    first, second = failure.value.outputs
    assert f"Stopped by SIGTERM. Saved at {folder}/checkpoints/step-000003" in first
    assert "Stopped" not in second
    for output in (first, second):
        times = [float(line.split(" at ")[1]) for line in output.splitlines() if " at 1" in line]
        assert f"exit {128 + signal.SIGTERM}" in output
        assert times[1] - times[0] < 5  # a second on an idle machine
    for ranks, steps in ((3, 5), (1, 6)):
        resumed = override(config, {"run_dir": str(folder), "train.steps": steps})
        if ranks == 1:
            Trainer(resumed, resume=folder, quiet=True).train()
        else:
            run_ranks(resumed_task, ranks, to_dict(resumed), str(folder), timeout=300)
    expected = weights(tmp_path / "whole")
    for name, weight in weights(folder).items():
        # See BAR of test_train_ranks.py.
        assert (weight - expected[name]).abs().max() <= 0.05 * LR, name


def resumed_task(config: dict, folder: str) -> None:
    Trainer(from_dict(config), resume=folder, quiet=True).train()
