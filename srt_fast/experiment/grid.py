"""The runs of `srt-fast experiment`: what a grid is, and the one that has a name, "collapse".

Every arm of "collapse" is the quickstart recipe with some fields changed. All run on the hf sampler
and the CPU, so that every machine runs the same. grid_file.py reads other grids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from srt_fast.config import Config, override
from srt_fast.config.arguments import find_recipe

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


@dataclass(frozen=True)
class Arm:
    """A row of a grid. It is run once per seed."""

    name: str
    group: str
    """Of GROUPS. "" in a grid of a file."""
    changes: dict[str, Any]
    """Changes of the recipe, as srt_fast.override takes them."""
    note: str
    recipe: str = "quickstart"
    place: str = ""
    """Model and task, in a grid of a file that has several: "smollm-chain_sum"."""

    @property
    def label(self) -> str:
        """The arm in its place. It begins the names of its runs' folders: "smollm-gcd-ema"."""
        return f"{self.place}-{self.name}" if self.place else self.name

    def config(self, seed: int, folder: Path) -> Config:
        """The whole configuration of the run with this seed, in this folder.

        Raises ValueError, which names the arm and the bad field.
        """
        changes = self.changes | {"train.seed": seed, "run_dir": str(folder)}
        try:
            return override(find_recipe(self.recipe), changes)
        except ValueError as error:
            raise ValueError(f"arm {self.label}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What `srt-fast experiment` runs: arms x seeds, and the page that shows them."""

    name: str
    """Of the page's files, and of the runs' folder."""
    page: Literal["collapse", "arms"]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    title: str = ""
    note: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    """What the grid's file holds."""


def collapse_grid() -> Grid:
    """Every arm, in the order of GROUPS."""
    arms = [
        Arm(f"rise_{kind}", "rise", BASE | RISE | {"reward.kind": kind}, note)
        for kind, note in RISE_ARMS.items()
    ]
    for group, rows in COLLAPSE_ARMS.items():
        for name, kind, note, changes in rows:
            all_changes = BASE | COLLAPSE | {"reward.kind": kind} | changes
            arms.append(Arm(name, group, all_changes, note))
    return Grid(name="collapse", page="collapse", arms=tuple(arms))
