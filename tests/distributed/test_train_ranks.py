"""Whole runs on several ranks against the same runs in one process."""

from pathlib import Path

import pytest
import torch

from srt_fast.config import Config, from_dict, override, to_dict
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy
from srt_fast.train import Trainer
from support.models import sharpen
from support.ranks import run_ranks

LR = 1e-3
BAR = 0.05 * LR
"""How far a weight may be from one process's after a run.

A sum in another order changes a gradient's last bits. AdamW divides by the gradient's size, so a
weight whose gradient is nearly 0 moves by a part of the learning rate in another direction.
"""

RUNS = {
    # A budget of two rollouts: several micro-batches, of which a rank may have an empty one.
    "majority": {"train.token_budget": 24},
    "ema": {
        "reward": {"kind": "ema", "params": {"decay": 0.5, "final_decay": 0.5}},
        "train": {"reward_kl_coef": 0.1, "minibatches": 2},
    },
    # Adapters over frozen weights. Reference and teacher are views of the one sharded model.
    "lora": {
        "model.lora": {"r": 4, "alpha": 4, "target": ["q_proj", "up_proj", "lm_head"]},
        "reward": {"kind": "ema", "params": {"decay": 0.5, "final_decay": 0.5}},
        "train": {"reward_kl_coef": 0.1, "minibatches": 2},
        "sampling.temperature": 0.5,
    },
    "threshold": {"reward": {"kind": "threshold", "params": {"tau": 0.5}, "resample": 2}},
    "gspo": {"train.objective": "gspo"},
    "fused optimizer": {"train.optimizer": "adamw_fused"},
    # Fewer prompts than ranks. Steps whose only group is unanimous have no gradient.
    "one prompt": {"train.prompts_per_step": 1, "sampling.temperature": 0.5},
    # At a low temperature the start agrees with its votes, and then no more.
    "rollback": {
        "monitor": {"action": "rollback", "every": 1, "false_alarm_looks": 2},
        "train.lr": 1e-2,
        "sampling.temperature": 0.5,
    },
    # Two turns, and a question after all completions of all ranks.
    "episode": {"reward": {"kind": "self_correct", "params": {"question": "!", "alpha": 1}}},
    "supervised": {"curriculum": {"supervised_every": 2, "supervised_lead": 1.0}},
    # The two of a pair in two micro-batches, perhaps on two ranks.
    "offline rounds": {"train": {"objective": "scpo", "rounds": 2, "token_budget": 12}},
}


def ranks_task(configs: list[dict]) -> None:
    for config in configs:
        Trainer(from_dict(config), quiet=True).train()


@pytest.fixture
def sharp_config(tiny_config, tiny_model, tmp_path) -> Config:
    changes = {"model.path": sharpen(tiny_model, tmp_path / "sharp"), "train.lr": LR}
    return override(tiny_config, changes)


def weights_of(folder: Path, config: Config) -> dict[str, torch.Tensor]:
    return dict(load_policy(str(folder / "model"), config.model).weights())


def test_runs_are_those_of_one_process(sharp_config, tmp_path):
    configs = []
    for name, changes in RUNS.items():
        changes = changes | {"train.steps": 6}
        Trainer(
            override(sharp_config, changes | {"run_dir": str(tmp_path / name)}), quiet=True
        ).train()
        ranks_dir = str(tmp_path / f"{name} on two ranks")
        configs.append(to_dict(override(sharp_config, changes | {"run_dir": ranks_dir})))
    run_ranks(ranks_task, 2, configs, timeout=400)
    start = dict(load_policy(sharp_config.model.path, sharp_config.model).weights())
    for name in RUNS:
        alone = weights_of(tmp_path / name, sharp_config)
        ranks = weights_of(tmp_path / f"{name} on two ranks", sharp_config)
        for weight_name, weight in alone.items():
            assert (weight - ranks[weight_name]).abs().max() <= BAR, (name, weight_name)
        assert any((alone[weight] - start[weight]).abs().max() > LR / 2 for weight in start), name
        metrics = [
            [
                {
                    key: row[key]
                    for key in ("vote_share", "pseudo_reward", "updates", "tokens_saved")
                }
                for row in read_rows(tmp_path / folder / "metrics.jsonl")
                if row["kind"] == "train"
            ]
            for folder in (name, f"{name} on two ranks")
        ]
        assert metrics[0] == metrics[1], name
        events = read_rows(tmp_path / f"{name} on two ranks" / "metrics.jsonl")
        if name == "rollback":
            assert "rolled_back" in [row.get("event") for row in events]
    rows = read_rows(tmp_path / "one prompt" / "metrics.jsonl")
    assert 0 in [row["updates"] for row in rows if row["kind"] == "train"]
