"""The embedded model: its tokenizer, its warm start, and what self-training adds to it."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from srt_fast.config import Config, override, recipes
from srt_fast.files import read_rows
from srt_fast.quickstart import WarmStart, build_tokenizer, cache_folder, ensure_warm_started
from srt_fast.tasks.lessons import make_lesson, with_slips
from srt_fast.train import Trainer
from srt_fast.types import Problem
from support.models import SMALL_WARM_START


@pytest.fixture
def small_config(monkeypatch, tmp_path) -> Config:
    """A small quickstart, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changes = SMALL_WARM_START | {
        "sampling.engine": "hf",  # the model is too small for vLLM's CPU attention
        "run_dir": str(tmp_path / "run"),
        "log.tensorboard": False,
        "train": {"steps": 24, "prompts_per_step": 16, "lr": 1e-3},
        "evaluation": {"every": 0, "prompts": 64, "samples": 8},
    }
    return override(recipes.quickstart(), changes)


def do_nothing(*_, **__) -> None:
    pass


def test_the_tokenizer_round_trips_any_text():
    tokenizer = build_tokenizer()
    for text in ("740+580=2310\\boxed{132}", "né à 東京\n\t\\boxed", "<b>"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    ids = tokenizer("\\boxed{7}")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) == 4  # begin, \boxed{, 7, }


def test_the_frequency_of_slips():
    """Four columns. A tenth of the random digits is the right one. Four standard errors."""
    problem = Problem(id="", prompt="740+580=", gold="132")
    rng = random.Random(0)
    assert with_slips(problem, rng, 0.0) == problem
    right = sum(with_slips(problem, rng, 0.15).gold == "132" for _ in range(4000)) / 4000
    assert abs(right - (1 - 0.15 * 0.9) ** 4) < 4 * (0.25 / 4000) ** 0.5


def test_lessons_of_each_format():
    """Without slips all that is shown and taught is right."""
    problem = Problem(id="", prompt="740+580=", gold="132")
    solution = "2310\\boxed{132}"
    rng = random.Random(0)
    assert make_lesson(problem, "solve", rng, 0.0) == ("740+580=", solution)
    assert make_lesson(problem, "verdict", rng, 0.0) == (f"740+580={solution}?", "\\boxed{1}")
    redone = {make_lesson(problem, "redo", rng, 0.0) for _ in range(20)}
    shown = f"740+580={solution}"
    assert redone == {(f"{shown}!", solution), (f"{shown}?\\boxed{{0}}!", solution)}


def test_slips_of_verdicts():
    """A verdict is wrong as often as `slip` says, on right and on wrong solutions. Four standard
    errors.
    """
    problem = Problem(id="", prompt="740+580=", gold="132")
    rng = random.Random(0)
    wrong = {True: [], False: []}
    for _ in range(8000):
        prompt, verdict = make_lesson(problem, "verdict", rng, 0.15)
        is_right = prompt.endswith("{132}?")
        wrong[is_right].append((verdict == "\\boxed{1}") != is_right)
    for flags in wrong.values():
        error = (0.15 * 0.85 / len(flags)) ** 0.5
        assert len(flags) > 3000 and abs(sum(flags) / len(flags) - 0.15) < 4 * error


def test_a_batch_of_lessons_of_all_formats(small_config, tiny_policy):
    """Every second one is a sum, the others are in turn of the two formats."""
    changes = {"warm_start.formats": ["verdict", "redo"], "warm_start.batch_size": 6}
    config = override(small_config, changes | {"warm_start.slip": 0.0})
    tokenizer = build_tokenizer()
    policy = SimpleNamespace(
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        model=tiny_policy.model,
        head=tiny_policy.head,
    )
    batch = WarmStart(policy, config, do_nothing, do_nothing)._lessons()
    taught = []
    for segment in range(len(batch.segments.query_lengths)):
        start, stop = batch.segments.cu_queries[segment : segment + 2].tolist()
        taught.append(tokenizer.decode(batch.input_ids[start:stop], skip_special_tokens=True))
    kinds = sorted("!" if "!" in text else "?" if "?" in text else "=" for text in taught)
    assert kinds == ["!", "=", "=", "=", "?", "?"]
    assert len(batch.targets) == len(batch.row_index)


def test_warm_start_and_training(small_config):
    """The whole quickstart in small. The warm start is cached, and training improves the model.

    Gold answers are the reward. Where processors sum in another order, the small warm start is
    another model, and its majority may be no better than a sample: the vote then improves nothing.
    """
    config = override(small_config, {"reward.kind": "oracle"})
    with_adapters = override(config, {"model.lora.r": 4})  # the warm start trains all weights
    folder = ensure_warm_started(with_adapters, do_nothing, do_nothing)
    assert folder == cache_folder(config)
    assert (folder / "model.safetensors").is_file()

    def fail(*_, **__):
        pytest.fail("trained again")

    assert ensure_warm_started(config, fail, do_nothing) == folder
    summary = Trainer(config, quiet=True).train()
    # The band of the warm start, 0.43 to 0.6, and three times the noise of 80 samples.
    assert 0.25 <= summary["pass1_start"] <= 0.77
    rows = read_rows(Path(summary["run_dir"]) / "metrics.jsonl")
    # 256 samples a step. Ten held-out sums would say little.
    accuracy = [row["pass1"] for row in rows if row["kind"] == "train"]
    # The difference of two means of 1024 samples has a standard error of 0.018: three times that.
    assert sum(accuracy[-4:]) / 4 >= sum(accuracy[:4]) / 4 + 0.054


def test_a_band_out_of_reach_is_an_error_and_leaves_nothing(small_config):
    config = override(small_config, {"warm_start.max_steps": 2})
    with pytest.raises(ValueError, match="warm_start.max_steps: .*within 2 supervised steps"):
        ensure_warm_started(config, do_nothing, do_nothing)
    left = [path.suffix for path in cache_folder(config).parent.iterdir()]
    assert left == [".lock"]
