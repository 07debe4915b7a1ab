import random
from pathlib import Path

import pytest

from srt_fast.config import override
from srt_fast.config.recipes import quickstart
from srt_fast.files import read_rows
from srt_fast.quickstart import build_tokenizer, cache_folder, ensure_warm_started, with_slips
from srt_fast.train import Trainer
from srt_fast.types import Problem


@pytest.fixture
def small(monkeypatch, tmp_path):
    """One-digit sums and a model that learns them in seconds, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return override(
        quickstart(),
        {
            "sampling.engine": "hf",  # a model too small for vLLM's CPU attention
            "run_dir": str(tmp_path / "run"),
            "task.params": {"max_digits": 1},
            "log.tensorboard": False,
            "warm_start": {
                "hidden_size": 64,
                "layers": 2,
                "batch_size": 64,
                "lr": 1e-2,
                "max_steps": 600,
            },
            "train": {"steps": 24, "prompts_per_step": 16, "lr": 3e-4},
            "evaluation": {"every": 0, "prompts": 64, "samples": 8},
        },
    )


def test_tokenizer_round_trips_any_text_and_keeps_the_box_whole():
    tokenizer = build_tokenizer()
    for text in ("740+580=2310\\boxed{132}", "né à 東京\n\t\\boxed", "<b>"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    ids = tokenizer("\\boxed{7}")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and len(ids) == 4  # begin, \boxed{, 7, }


def test_slips_are_as_frequent_as_asked():
    problem, rng = Problem(id="", prompt="740+580=", gold="132"), random.Random(0)
    assert with_slips(problem, rng, 0.0) == problem
    right = sum(with_slips(problem, rng, 0.15).gold == "132" for _ in range(4000)) / 4000
    assert (
        abs(right - (1 - 0.15 * 0.9) ** 4) < 4 * (0.25 / 4000) ** 0.5
    )  # four columns; a tenth of slips hit the digit


def test_warm_start_stops_in_the_band_is_cached_and_self_training_improves_on_it(small):
    """The whole quickstart in small: a band that a jump passes over is reached too, and the vote teaches."""
    steps = []
    folder = ensure_warm_started(small, lambda step, **_: steps.append(step), lambda: None)
    assert folder == cache_folder(small) and (folder / "model.safetensors").is_file()
    assert (
        ensure_warm_started(small, lambda *_, **__: pytest.fail("trained again"), lambda: None)
        == folder
    )
    summary = Trainer(small, quiet=True).train()
    assert 0.3 <= summary["pass1_start"] <= 0.7 and summary["maj_start"] > summary["pass1_start"]
    rows = read_rows(Path(summary["run_dir"]) / "metrics.jsonl")
    accuracy = [
        row["pass1"] for row in rows if row["kind"] == "train"
    ]  # 256 samples a step; ten held-out sums say little
    # Three times the noise of the difference of two means of 1024 samples, 0.018.
    assert sum(accuracy[-4:]) / 4 >= sum(accuracy[:4]) / 4 + 0.054


def test_a_band_out_of_reach_is_an_error_and_leaves_nothing(small):
    config = override(small, {"warm_start.max_steps": 2})
    with pytest.raises(ValueError, match="warm_start.max_steps: .*within 2 supervised steps"):
        ensure_warm_started(config, lambda *_, **__: None, lambda: None)
    assert list(cache_folder(config).parent.iterdir()) == []
