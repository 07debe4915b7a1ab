"""The runs of `srt-fast experiment`: the arms, and the configuration of each.

Every arm is the quickstart recipe with some fields changed. All run on the hf sampler and the CPU,
so that every machine runs the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from srt_fast.config import Config, override
from srt_fast.config.recipes import quickstart

BASE = {
    "model.device": "cpu",
    "sampling.engine": "hf",
    "log.tensorboard": False,
    "checkpoint.every": 25,
    "checkpoint.keep": 1,
    "reward.params": {},
    "reward.resample": 0,
    "monitor.action": "log",
    "monitor.labels": "start",
    "curriculum.head_tail": 0.0,
    "curriculum.supervised_every": 0,
}
"""What all arms have in common. An arm may change the settings from reward.params on. They are
written out here so that a new default of the recipe does not change the experiment."""
RISE = {
    "train": {"lr": 1e-4, "prompts_per_step": 64, "steps": 60},
    "evaluation": {"every": 10, "prompts": 256, "samples": 8},
}
"""The recipe's own settings, written out for the same reason."""
COLLAPSE = {
    "train": {"lr": 5e-4, "prompts_per_step": 24, "steps": 120},
    "evaluation": {"every": 10, "prompts": 128, "samples": 4},
}
"""Settings in which the plain vote collapses: five times the learning rate, fewer prompts per step,
more steps."""
LONG = {"train.steps": 320}
LONG_RUNS = {
    "train": COLLAPSE["train"] | {"steps": 1000},
    "evaluation": COLLAPSE["evaluation"] | {"every": 20},
}
"""The same settings for 1,000 steps, for false alarms."""
QUESTION = {"reward.params": {"question": "{prompt}{completion}?"}}
"""A short question for self_judge and verify. The embedded model knows only sums, so a question in
words would say no more to it and be longer."""

GROUPS = {
    "rise": "the recipe's own settings",
    "collapse": "the plain vote and gold answers in the collapsing settings, and two longer runs",
    "reward": "other reward functions in the collapsing settings",
    "action": "the plain vote with an action of the monitor",
    "paper": "what the paper found not to help",
    "curriculum": "the plain vote with a curriculum",
    "long": "1,000 steps in the collapsing settings",
}
"""The groups of arms. Those from "reward" to "curriculum" have the budget of the plain vote in
"collapse"."""

RISE_ARMS = {
    "majority": "the plain vote",
    "oracle": "gold answers",
    "ema": "labels of a moving-average teacher",
}
"""Reward kind and note of each arm in the recipe's settings."""
COLLAPSE_ARMS: dict[str, list[tuple[str, str, str, dict[str, Any]]]] = {
    "collapse": [
        ("majority", "majority", "the plain vote", {}),
        ("oracle", "oracle", "gold answers", {}),
        ("majority_long", "majority", "the plain vote, to the end", LONG),
        ("ema_long", "ema", "labels of a moving-average teacher, as long", LONG),
    ],
    "reward": [
        ("soft", "soft", "reward: the share of the rollout's answer", {}),
        ("threshold", "threshold", "only clear votes train", {}),
        (
            "threshold_resample",
            "threshold",
            "the same, with resampling until the batch is full",
            {"reward.resample": 8},
        ),
        ("easiest", "easiest", "only the prompts with the clearest votes train", {}),
        ("frozen", "frozen", "labels of the starting model", {}),
        ("ema", "ema", "labels of a moving-average teacher", {}),
        ("pool", "pool", "policy and moving-average teacher vote together", {}),
        ("restrain", "restrain", "every answer is a label, weighted by its share", {}),
        ("base_rate", "base_rate", "the vote, less what the answer gets on other prompts", {}),
        (
            "self_certainty",
            "self_certainty",
            "reward: distance of the token distributions from uniform",
            {},
        ),
        ("entropy", "entropy", "reward: low token entropy", {}),
        ("self_judge", "self_judge", "the model grades its own rollouts", QUESTION),
        ("verify", "verify", "the vote, and its verification as a second task", QUESTION),
    ],
    "action": [
        (
            "majority_stop",
            "majority",
            "the alarm ends the run with the best weights",
            {"monitor.action": "stop"},
        ),
        (
            "majority_rollback",
            "majority",
            "the alarm restores the best weights",
            {"monitor.action": "rollback"},
        ),
        (
            "majority_freeze",
            "majority",
            "the alarm switches to the starting model's labels",
            {"monitor.action": "freeze"},
        ),
    ],
    "paper": [
        (
            "majority_kl",
            "majority",
            "KL penalty of 0.1 in the reward",
            {"train.reward_kl_coef": 0.1},
        ),
        (
            "majority_entropy",
            "majority",
            "entropy bonus of 0.01",
            {"train.objective_overrides": {"entropy_coef": 0.01}},
        ),
        (
            "majority_rloo",
            "majority",
            "RLOO advantages instead of GRPO's",
            {"train.advantage": "rloo"},
        ),
    ],
    "curriculum": [
        (
            "majority_head_tail",
            "majority",
            "prompts weighted by vote share",
            {"curriculum.head_tail": 1.0},
        ),
        (
            "majority_replay",
            "majority",
            "a supervised step on strong, rare votes every 5 steps",
            {"curriculum.supervised_every": 5},
        ),
    ],
}
"""Name, reward kind, note and changes of each arm in the collapsing settings, by group."""
LONG_ARMS = {
    "oracle": "gold answers",
    "ema": "labels of a moving-average teacher",
}
"""Reward kind and note of each arm of 1,000 steps."""
Experiment = Literal["collapse", "alarm"]


@dataclass(frozen=True)
class Arm:
    """A row of the grid. It is run once per seed."""

    name: str
    group: str
    changes: dict[str, Any]
    """Changes of the quickstart recipe and BASE, as srt_fast.override takes them."""
    note: str

    def config(self, seed: int, folder: Path) -> Config:
        """The whole configuration of the run with this seed, in this folder.

        Raises ValueError, which names the arm and the bad field.
        """
        changes = BASE | self.changes | {"train.seed": seed, "run_dir": str(folder)}
        try:
            return override(quickstart(), changes)
        except ValueError as error:
            raise ValueError(f"arm {self.name}: {error}") from None


def collapse_grid() -> tuple[Arm, ...]:
    """Every arm, in the order of GROUPS."""
    arms = [
        Arm(f"rise_{kind}", "rise", RISE | {"reward.kind": kind}, note)
        for kind, note in RISE_ARMS.items()
    ]
    for group, rows in COLLAPSE_ARMS.items():
        for name, kind, note, changes in rows:
            arms.append(Arm(name, group, COLLAPSE | {"reward.kind": kind} | changes, note))
    return tuple(arms)


def alarm_grid() -> tuple[Arm, ...]:
    """Long healthy runs, and runs of the plain vote, which collapse."""
    votes = [arm for arm in collapse_grid() if arm.name in ("majority", "majority_long")]
    long = [
        Arm(f"{kind}_1000", "long", LONG_RUNS | {"reward.kind": kind}, note)
        for kind, note in LONG_ARMS.items()
    ]
    return (*votes, *long)


GRIDS: dict[Experiment, Callable[[], tuple[Arm, ...]]] = {
    "collapse": collapse_grid,
    "alarm": alarm_grid,
}
"""The arms of each experiment."""
