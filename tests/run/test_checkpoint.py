"""Checkpoints: complete or not there, and every random generator restored."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from srt_fast.run.checkpoint import (
    CheckpointError,
    list_checkpoints,
    random_state,
    save_checkpoint,
    set_random_state,
)


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "file").write_text(text)

    return write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_keeps_the_last_and_deletes_what_a_crash_left(tmp_path):
    (tmp_path / ".writing-step-000001").mkdir()
    for step in (1, 2, 3, 3):
        save_checkpoint(tmp_path, step, writer(str(step)), keep=2, link=tmp_path / "model")
    assert names(tmp_path) == ["model", "step-000002", "step-000003"]
    assert (tmp_path / "model").readlink() == Path("step-000003/model")
    assert list_checkpoints(tmp_path)[-1] == tmp_path / "step-000003"


def test_a_checkpoint_of_the_same_step_is_replaced_only_with_overwrite(tmp_path):
    link = tmp_path / "model"
    save_checkpoint(tmp_path, 1, writer("first"), keep=1, link=link)
    save_checkpoint(tmp_path, 1, writer("second"), keep=1, link=link)
    assert (tmp_path / "step-000001" / "file").read_text() == "first"
    save_checkpoint(tmp_path, 1, writer("third"), keep=1, link=link, overwrite=True)
    assert (tmp_path / "step-000001" / "file").read_text() == "third"
    assert names(tmp_path) == ["model", "step-000001"]


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, writer("one"), keep=1, link=tmp_path / "model")

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(tmp_path, 2, fail, keep=1, link=tmp_path / "model")
    assert names(tmp_path) == ["model", "step-000001"]


def test_every_random_generator_is_restored(tmp_path):
    def draw() -> tuple[float, float, list[float]]:
        return random.random(), numpy.random.rand(), torch.rand(3).tolist()

    torch.save(random_state(), tmp_path / "state.pt")
    expected = draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected
