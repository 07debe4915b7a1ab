"""What a run does about an alarm. The held-out scores are written down here; everything else is the real run."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srt_fast.collapse.probe import CollapseProbe
from srt_fast.config import override
from srt_fast.files import read_rows
from srt_fast.train import Trainer

SCORES = {0: 0.5, 2: 0.8, 4: 0.9, 6: 0.5, 8: 0.5, 10: 0.9, 12: 0.5, 14: 0.5, 16: 0.5}
"""The mean of two looks: best at step 4 (0.85), 15 points lower at 6."""


@pytest.fixture
def collapsing(monkeypatch, tiny_config):
    """A configuration whose held-out scores are SCORES, whatever the model does."""
    look = CollapseProbe.measure

    def scripted(self):
        scores, kl = look(self)  # the real look, for what it does to the run
        return [SCORES[next(steps)]] * len(scores), kl

    steps = iter(SCORES)
    monkeypatch.setattr(CollapseProbe, "measure", scripted)
    return override(
        tiny_config,
        {
            "train.steps": 16,
            "task.answer_rule": "last_number",
            "checkpoint": {"every": 2, "keep": 99},
        },
    )


def trained(config, action: str, resume=None, **changes) -> tuple[dict, list[dict], Path]:
    summary = Trainer(
        override(config, {"monitor.action": action, **changes}), quiet=True, resume=resume
    ).train()
    folder = Path(config.run_dir)
    return summary, read_rows(folder / "metrics.jsonl"), folder


def events(rows: list[dict], *names: str) -> list[tuple[int, str]]:
    return [(row["step"], row["event"]) for row in rows if row.get("event") in names]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict, second: dict) -> bool:
    return all(first[name].equal(second[name]) for name in first)


def test_stop_ends_the_run_with_the_best_weights(collapsing):
    summary, rows, folder = trained(collapsing, "stop")
    assert summary["steps"] == 6 and events(rows, "alarm", "stopped") == [
        (6, "alarm"),
        (6, "stopped"),
    ]
    assert next(row for row in rows if row.get("event") == "stopped")["best_step"] == 4
    best = weights(folder / "checkpoints" / "step-000004" / "model")
    assert same(weights(folder / "model"), best) and same(weights(folder / "best_model"), best)
    assert not same(weights(folder / "checkpoints" / "step-000002" / "model"), best)
    assert rows[-1]["kind"] == "eval" and rows[-1]["step"] == 6  # of the best weights
    again, more, _ = trained(collapsing, "stop", resume=folder)
    assert again["steps"] == 6 and [row["kind"] for row in more].count("train") == 6


def test_rollback_goes_on_from_the_best_weights_and_slower(collapsing):
    """Back at 6; the first look after it is 0.5, still 35 points below the best: back again, and so on."""
    summary, rows, folder = trained(collapsing, "rollback")
    assert events(rows, "rolled_back", "stopped") == [
        (6, "rolled_back"),
        (8, "rolled_back"),
        (12, "rolled_back"),
        (14, "stopped"),
    ]
    lr = {row["step"]: row["lr"] for row in rows if row["kind"] == "train"}
    halved = [1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4, 1.25e-4, 1.25e-4]
    assert [lr[step] for step in (6, 7, 8, 9, 12, 13, 14)] == pytest.approx(halved)
    assert summary["steps"] == 14
    assert same(weights(folder / "model"), weights(folder / "best_model"))


def test_freeze_goes_on_with_the_starting_models_votes(collapsing):
    """Also where the run is stopped after it and goes on."""
    _, rows, folder = trained(collapsing, "freeze", **{"train.steps": 8})
    assert events(rows, "frozen") == [(6, "frozen")]
    trainer = Trainer(
        override(collapsing, {"monitor.action": "freeze", "train.steps": 10}),
        quiet=True,
        resume=folder,
    )
    trainer.train()
    assert (
        type(trainer.parts.rewards.function).__name__ == "Frozen"
        and trainer.parts.rewards.state_dict()["labels"]
    )
    assert events(read_rows(folder / "metrics.jsonl"), "frozen") == [(6, "frozen")]


def test_log_changes_no_step(collapsing, tmp_path):
    """Nor does looking."""
    _, rows, folder = trained(collapsing, "log", **{"train.steps": 8})
    assert events(rows, "alarm", "stopped", "rolled_back", "frozen") == [(6, "alarm")]
    blind = override(
        collapsing, {"run_dir": str(tmp_path / "blind"), "monitor.every": 0, "train.steps": 8}
    )
    assert same(weights(folder / "model"), weights(trained(blind, "log")[2] / "model"))


def test_the_probe_can_use_gold_labels(tiny_config, tmp_path):
    rows = trained(tiny_config, "log", **{"monitor.labels": "gold"})[1]
    assert all(0 <= row["probe_score"] <= 1 for row in rows if row["kind"] == "monitor")
    (tmp_path / "plain.jsonl").write_text("".join(f'{{"problem": "{i}+1="}}\n' for i in range(40)))
    task = {"kind": "jsonl", "name": str(tmp_path / "plain.jsonl"), "params": {}}
    with pytest.raises(ValueError, match="monitor.labels: 'gold' needs gold answers"):
        Trainer(override(tiny_config, {"task": task, "monitor.labels": "gold"}))
    with pytest.raises(
        ValueError, match="monitor.every: expected at least 1 with monitor.action='stop', got 0"
    ):
        override(tiny_config, {"monitor": {"action": "stop", "every": 0}})
