"""Offline rounds: what is sampled when, and a resume in the middle of one."""

import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srt_fast.config import Config, override
from srt_fast.files import read_rows
from srt_fast.run.interrupts import RunInterrupted
from srt_fast.sampling.hf import HFSampler
from srt_fast.sampling.prefetch import BatchPrefetcher
from srt_fast.tasks import make_task
from srt_fast.tasks.stream import PromptStream
from srt_fast.train import Trainer

# Of 5 steps the first round has two and the second three.
ROUNDS = {
    "train": {"objective": "dpo", "rounds": 2, "steps": 5, "prompts_per_step": 12},
    "task.answer_rule": "last_number",
}
OF_THE_SAMPLES = ("completion_tokens", "vote_share", "no_answer", "pseudo_reward", "pass1")


def run(config: Config, folder: Path, **changes) -> list[dict]:
    """Train into `folder`. Returns the rows of the steps."""
    Trainer(override(config, {"run_dir": str(folder), **changes}), quiet=True).train()
    return train_rows(folder)


def train_rows(folder: Path) -> list[dict]:
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]
    return [
        {name: row[name] for name in row if name != "time" and "second" not in name} for row in rows
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_round_samples_from_the_policy_of_its_start(tiny_config, tmp_path):
    """So the samples of a first round are the same with any learning rate, and no others are."""
    config = override(tiny_config, {**ROUNDS, "monitor.every": 0})
    rows = run(config, tmp_path / "slow")
    fast = run(config, tmp_path / "fast", **{"train.lr": 0.1})
    for row, other in zip(rows, fast, strict=True):
        is_same = all(row[name] == other[name] for name in OF_THE_SAMPLES)
        assert is_same == (row["step"] <= 2)
    assert [row["round"] for row in rows] == [1, 1, 2, 2, 2]
    for row in rows:
        assert row["pairs"] > 0
        # A round's first step is at the reference: only rounding moves the margin, of two
        # completions of at most three tokens with log-probs of about -5.
        is_first = row["step"] in (1, 3)
        assert (abs(row["pair_margin"]) < 1e-5) == is_first
        assert not is_first or row["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_resume_in_the_middle_of_a_round_is_bit_for_bit(tiny_config, tmp_path, monkeypatch):
    """Stopped after the third of five steps. Two batches of the second round wait then, with the
    log-probs of their reference.
    """
    changes = {"train.objective": "scpo", "reward.kind": "soft"}
    config = override(tiny_config, {**ROUNDS, **changes})
    whole = run(config, tmp_path / "whole")
    folder = tmp_path / "stopped"
    after_step = Trainer._after_step

    def stop(trainer: Trainer) -> None:
        if trainer.step == 3 and trainer.run.last_checkpoint() is None:
            signal.raise_signal(signal.SIGTERM)
        after_step(trainer)

    monkeypatch.setattr(Trainer, "_after_step", stop)
    config = override(config, {"run_dir": str(folder)})
    with pytest.raises(RunInterrupted):
        Trainer(config, quiet=True).train()
    assert len(train_rows(folder)) == 3
    Trainer(config, resume=folder, quiet=True).train()
    assert train_rows(folder) == whole
    resumed = weights(folder)
    for name, expected in weights(tmp_path / "whole").items():
        assert resumed[name].equal(expected), name


def test_simple_self_distillation_trains_on_all_samples(tiny_config, tmp_path):
    """Also on those without an answer: no rollout is left out."""
    changes = {
        "train.objective": "sft",
        "train.rounds": 1,
        "reward.kind": "raw",
        "sampling": {"temperature": 1.5, "top_k": 20, "allow_truncation": True},
    }
    start = load_file(Path(tiny_config.model.path) / "model.safetensors")
    rows = run(tiny_config, tmp_path / "run", **changes)
    assert [row["tokens_saved"] for row in rows] == [0] * 4
    assert [row["updates"] for row in rows] == [1] * 4
    assert any(not weights(tmp_path / "run")[name].equal(start[name]) for name in start)


def test_batches_that_wait_are_saved_or_dropped(tiny_policy, tiny_config):
    """A resumed run gets the same ones. After `discard` their prompts come again, sampled anew."""
    config = override(tiny_config, {"train.objective": "sft", "train.rounds": 1})

    def make_prefetcher() -> BatchPrefetcher:
        stream = PromptStream(make_task(config), config.train.seed)
        return BatchPrefetcher(config, stream, tiny_policy, HFSampler(tiny_policy, 64))

    torch.manual_seed(0)
    prefetcher = make_prefetcher()
    prefetcher.next_batch(ahead=3)
    state = prefetcher.state_dict()
    assert len(state["rollouts"]) == 2
    resumed = make_prefetcher()
    resumed.load_state_dict(state)
    rest = [prefetcher.next_batch(ahead=3) for _ in range(2)]
    for prompts, rollouts in rest:
        same_prompts, same_rollouts = resumed.next_batch(ahead=3)
        assert same_prompts == prompts
        assert same_rollouts.tokens.equal(rollouts.tokens)
    dropping = make_prefetcher()
    dropping.load_state_dict(state)
    dropping.discard()
    assert dropping.state_dict() == {"prompts": state["prompts"], "rollouts": []}
    prompts, rollouts = dropping.next_batch()
    assert prompts == rest[0][0]
    assert not rollouts.tokens.equal(rest[0][1].tokens)
    for each in (prefetcher, resumed, dropping):
        each.close()
