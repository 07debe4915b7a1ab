import random
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


def write(text):
    return lambda folder: (folder / "file").write_text(text)


def test_keeps_the_last_and_clears_what_a_crash_left(tmp_path):
    (tmp_path / ".writing-step-000001").mkdir()
    for step in (1, 2, 3, 3):
        save_checkpoint(tmp_path, step, write(str(step)), keep=2, link=tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "step-000002", "step-000003"]
    assert (tmp_path / "model").readlink() == Path("step-000003/model")
    assert list_checkpoints(tmp_path)[-1] == tmp_path / "step-000003"


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, write("one"), keep=1, link=tmp_path / "model")

    def fails(folder):
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(tmp_path, 2, fails, keep=1, link=tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "step-000001"]


def test_every_random_generator_comes_back(tmp_path):
    state = random_state()
    torch.save(state, tmp_path / "state.pt")
    drawn = random.random(), numpy.random.rand(), torch.rand(3)
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    again = random.random(), numpy.random.rand(), torch.rand(3)
    assert drawn[:2] == again[:2] and drawn[2].equal(again[2])
