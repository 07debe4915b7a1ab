"""What a run does about an alarm. The probe's scores are given; the rest is the real run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srt_fast.collapse.look import Look
from srt_fast.collapse.probe import CollapseProbe
from srt_fast.config import Config, override
from srt_fast.files import read_rows
from srt_fast.train import Trainer

SCORES = [0.5, 0.8, 0.9, 0.5, 0.5, 0.5, 0.5, 0.9, 0.5, 0.5, 0.5, 0.5]
"""Probe scores of steps 0, 2, 4, ... The best mean of two is at step 4. False alarms may come every
two looks, so the second low look in turn raises the alarm."""


@pytest.fixture
def collapsing(monkeypatch, tiny_config) -> Config:
    """A configuration whose probe scores are SCORES, whatever the model does."""
    measure = CollapseProbe.measure
    scores = iter(SCORES)

    def measure_with_given_scores(self, step):
        measurement = measure(self, step)  # the real one, for what it does to the run
        agreeing = round(1000 * next(scores))
        return replace(measurement, look=Look((agreeing, agreeing), (1000, 1000)))

    monkeypatch.setattr(CollapseProbe, "measure", measure_with_given_scores)
    changes = {
        "train.steps": 22,
        "monitor.false_alarm_looks": 2,
        "task.answer_rule": "last_number",
        "checkpoint": {"every": 2, "keep": 99},
    }
    return override(tiny_config, changes)


def train(config: Config, action: str, resume=None, **changes) -> tuple[dict, list[dict], Path]:
    """Summary, metrics rows and folder of a run."""
    config = override(config, {"monitor.action": action, **changes})
    summary = Trainer(config, quiet=True, resume=resume).train()
    folder = Path(config.run_dir)
    return summary, read_rows(folder / "metrics.jsonl"), folder


def events(rows: list[dict], *names: str) -> list[tuple[int, str]]:
    return [(row["step"], row["event"]) for row in rows if row.get("event") in names]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def are_equal(first: dict, second: dict) -> bool:
    return all(first[name].equal(second[name]) for name in first)


def test_stop_ends_the_run_with_the_best_weights(collapsing):
    summary, rows, folder = train(collapsing, "stop")
    assert summary["steps"] == 8
    assert events(rows, "alarm", "stopped") == [(8, "alarm"), (8, "stopped")]
    stopped = next(row for row in rows if row.get("event") == "stopped")
    assert stopped["best_step"] == 4
    best = weights(folder / "checkpoints" / "step-000004" / "model")
    assert are_equal(weights(folder / "model"), best)
    assert are_equal(weights(folder / "best_model"), best)
    assert not are_equal(weights(folder / "checkpoints" / "step-000002" / "model"), best)
    assert rows[-1]["kind"] == "eval"
    assert rows[-1]["step"] == 8  # of the best weights
    summary, rows, _ = train(collapsing, "stop", resume=folder)
    assert summary["steps"] == 8
    assert [row["kind"] for row in rows].count("train") == 8


def test_damaged_best_weights_are_refused(collapsing):
    """The best weights before them are used."""
    trainer = Trainer(override(collapsing, {"monitor.action": "stop"}), quiet=True)
    train_step = trainer.train_step
    folder = trainer.run.folder

    def step_with_damage():
        if trainer.step == 5:
            with open(
                folder / "best" / "step-000004" / "model" / "model.safetensors", "ab"
            ) as file:
                file.write(b"0")
        train_step()

    trainer.train_step = step_with_damage
    trainer.train()
    rows = read_rows(folder / "metrics.jsonl")
    assert events(rows, "checkpoint_refused", "stopped") == [
        (8, "checkpoint_refused"),
        (8, "stopped"),
    ]
    expected = weights(folder / "checkpoints" / "step-000002" / "model")
    assert are_equal(weights(folder / "model"), expected)


def test_rollback_goes_on_from_the_best_weights_at_a_lower_rate(collapsing):
    """Three times. Then it stops with the best weights, which now are those of step 14."""
    summary, rows, folder = train(collapsing, "rollback")
    assert events(rows, "rolled_back", "stopped") == [
        (8, "rolled_back"),
        (12, "rolled_back"),
        (18, "rolled_back"),
        (22, "stopped"),
    ]
    rates = {row["step"]: row["lr"] for row in rows if row["kind"] == "train"}
    expected = [1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4, 1.25e-4, 1.25e-4]  # powers of two: exact
    assert [rates[step] for step in (8, 9, 12, 13, 18, 19, 22)] == expected
    assert summary["steps"] == 22
    assert are_equal(weights(folder / "model"), weights(folder / "best_model"))


def test_freeze_goes_on_with_the_starting_models_votes(collapsing):
    """A run that is stopped after the action goes on with it."""
    _, rows, folder = train(collapsing, "freeze", **{"train.steps": 10})
    assert events(rows, "frozen") == [(8, "frozen")]
    config = override(collapsing, {"monitor.action": "freeze", "train.steps": 12})
    trainer = Trainer(config, quiet=True, resume=folder)
    trainer.train()
    rewards = trainer.parts.rewards
    assert type(rewards.function).__name__ == "Frozen"
    assert rewards.state_dict()["labels"]
    assert events(read_rows(folder / "metrics.jsonl"), "frozen") == [(8, "frozen")]


def test_log_and_measurements_change_no_step(collapsing, tmp_path):
    _, rows, folder = train(collapsing, "log", **{"train.steps": 8})
    assert events(rows, "alarm", "stopped", "rolled_back", "frozen") == [(8, "alarm")]
    changes = {"run_dir": str(tmp_path / "no_probe"), "monitor.every": 0, "train.steps": 8}
    _, _, folder_without_probe = train(override(collapsing, changes), "log")
    assert are_equal(weights(folder / "model"), weights(folder_without_probe / "model"))


def test_the_probe_can_use_gold_labels(tiny_config, tmp_path):
    _, rows, _ = train(tiny_config, "log", **{"monitor.labels": "gold"})
    assert all(0 <= row["probe_score"] <= 1 for row in rows if row["kind"] == "monitor")
    lines = [f'{{"problem": "{number}+1="}}\n' for number in range(40)]
    (tmp_path / "plain.jsonl").write_text("".join(lines))
    task = {"kind": "jsonl", "name": str(tmp_path / "plain.jsonl"), "params": {}}
    with pytest.raises(ValueError, match="monitor.labels: 'gold' needs gold answers"):
        Trainer(override(tiny_config, {"task": task, "monitor.labels": "gold"}))


def test_actions_need_the_probe(tiny_config):
    message = "monitor.every: expected at least 1 with monitor.action='stop', got 0"
    with pytest.raises(ValueError, match=message):
        override(tiny_config, {"monitor": {"action": "stop", "every": 0}})
