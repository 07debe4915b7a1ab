"""bench/bench_trainers.py: each way trains, and says what the tables need."""

import pytest

from srt_fast.config import override

pytest.importorskip("trl")
from bench_trainers import run, summarise, table  # noqa: E402


@pytest.mark.filterwarnings("ignore")  # what transformers and TRL deprecate in themselves
def test_the_ways_train_the_same(tiny_config):
    """Two seeds of each. Prompts, lengths, reward and loss are the same, so TRL's two ways sample completions of one length."""
    ways = ("trl", "trl_patched", "srt_fast")
    rows = [
        run(way, override(tiny_config, {"train.seed": seed, "run_dir": None}), 8)
        for seed in (0, 1)
        for way in ways
    ]
    assert all(
        len(row["seconds"]) == len(row["sampling"]) == tiny_config.train.steps - 1 for row in rows
    )
    assert all(
        0 < sampling < whole
        for row in rows
        for sampling, whole in zip(row["sampling"], row["seconds"], strict=True)
    )
    assert rows[0]["tokens"] == rows[1]["tokens"]
    plain, *others = summarise(rows, "tiny")
    assert plain["times_trl"] == 1 and all(
        row["times_trl"] == plain["seconds_a_step"] / row["seconds_a_step"] for row in others
    )
    assert all(len(row["accuracies"]) == 2 for row in (plain, *others))
    name, columns, lines = table("tiny", [plain, *others])
    assert name == "tiny" and all(len(line) == len(columns) for line in lines)
