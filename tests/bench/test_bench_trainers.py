"""bench/bench_trainers.py: each trainer runs, and returns what the tables need."""

import pytest

from srt_fast.config import override

pytest.importorskip("trl")
from bench_trainers import summarise, table
from trainers.runs import run


@pytest.mark.filterwarnings("ignore")  # of transformers and TRL about themselves
def test_the_trainers_train_the_same(tiny_config):
    """Two seeds of each. TRL and patched TRL sample completions of the same length."""
    ways = ("trl", "trl_patched", "srt_fast")
    runs = []
    for seed in (0, 1):
        config = override(tiny_config, {"train.seed": seed, "run_dir": None})
        runs += [run(way, config, micro_batch=8) for way in ways]
    for figures in runs:
        assert len(figures["seconds"]) == tiny_config.train.steps - 1
        for sampling, whole in zip(figures["sampling"], figures["seconds"], strict=True):
            assert 0 < sampling < whole
    assert runs[0]["tokens"] == runs[1]["tokens"]
    rows = summarise(runs, "tiny")
    assert rows[0]["times_trl"] == 1
    for row in rows:
        assert row["times_trl"] == rows[0]["seconds_a_step"] / row["seconds_a_step"]
        assert len(row["accuracies"]) == 2
    title, columns, lines = table("tiny", rows)
    assert title == "tiny"
    assert all(len(line) == len(columns) for line in lines)
