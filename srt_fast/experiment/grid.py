"""The runs of `srt-fast experiment collapse`: which arms there are, and the configuration of each.

Every arm is the quickstart recipe with some fields changed, on the hf sampler and the CPU, so that every machine runs the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
"""The second and third line: what an arm may change, as it is without, whatever the recipe's default comes to be."""
RISE = {
    "train": {"lr": 1e-4, "prompts_per_step": 64, "steps": 60},
    "evaluation": {"every": 10, "prompts": 256, "samples": 8},
}
"""The recipe's own settings, written out."""
COLLAPSE = {
    "train": {"lr": 5e-4, "prompts_per_step": 24, "steps": 120},
    "evaluation": {"every": 10, "prompts": 128, "samples": 4},
}
"""What it takes for the plain vote to collapse: five times the rate, fewer prompts a step, more steps."""
LONG = {"train.steps": 320}
ASK = {"reward.params": {"question": "{prompt}{completion}?"}}
"""The embedded model knows sums alone: a question in words would be as strange to it, and longer."""

GROUPS = {
    "rise": "the recipe's own setting",
    "collapse": "the plain vote and gold answers in the collapsing setting, and two longer runs; all below have the same budget",
    "design": "other feedback",
    "action": "the plain vote with the monitor's action",
    "paper": "what the paper found not to help",
    "curriculum": "the plain vote with a curriculum",
}


@dataclass(frozen=True)
class Arm:
    """A line of the grid, run once per seed."""

    name: str
    group: str
    changes: dict[str, Any]
    """Fields over the quickstart recipe and BASE, as config.override takes them."""
    note: str

    def config(self, seed: int, folder: Path) -> Config:
        """Its run's whole configuration. ValueError names the arm and the field that is wrong."""
        try:
            return override(
                quickstart(), BASE | self.changes | {"train.seed": seed, "run_dir": str(folder)}
            )
        except ValueError as error:
            raise ValueError(f"arm {self.name}: {error}") from None


def collapse_grid() -> tuple[Arm, ...]:
    """Every arm, in the order of GROUPS."""
    return (
        Arm("rise_majority", "rise", RISE | {"reward.kind": "majority"}, "the plain vote"),
        Arm("rise_oracle", "rise", RISE | {"reward.kind": "oracle"}, "gold answers"),
        Arm(
            "rise_ema",
            "rise",
            RISE | {"reward.kind": "ema"},
            "labels voted by a moving average of the weights",
        ),
        _arm("majority", "collapse", "majority", "the plain vote"),
        _arm("oracle", "collapse", "oracle", "gold answers"),
        _arm("majority_long", "collapse", "majority", "the plain vote, to the end", LONG),
        _arm(
            "ema_long",
            "collapse",
            "ema",
            "labels voted by a moving average of the weights, as long",
            LONG,
        ),
        _arm("soft", "design", "soft", "reward: the own answer's share"),
        _arm("threshold", "design", "threshold", "only clear votes train"),
        _arm(
            "threshold_resample",
            "design",
            "threshold",
            "the same, resampled until the batch is full",
            {"reward.resample": 8},
        ),
        _arm("easiest", "design", "easiest", "only the prompts with the clearest votes train"),
        _arm("frozen", "design", "frozen", "labels voted once by the starting model"),
        _arm("ema", "design", "ema", "labels voted by a moving average of the weights"),
        _arm("pool", "design", "pool", "policy and moving average vote together"),
        _arm(
            "restrain",
            "design",
            "restrain",
            "every answer is a pseudo-label, weighted by its share",
        ),
        _arm("base_rate", "design", "base_rate", "less what the answer gets on other prompts too"),
        _arm(
            "self_certainty",
            "design",
            "self_certainty",
            "reward: distance of the token distributions from uniform",
        ),
        _arm("entropy", "design", "entropy", "reward: low token entropy"),
        _arm("self_judge", "design", "self_judge", "the model grades its own answers", ASK),
        _arm("verify", "design", "verify", "the vote, and judging it as a second task", ASK),
        _arm(
            "majority_stop",
            "action",
            "majority",
            "the alarm ends the run, best weights restored",
            {"monitor.action": "stop"},
        ),
        _arm(
            "majority_rollback",
            "action",
            "majority",
            "the alarm goes back to a checkpoint",
            {"monitor.action": "rollback"},
        ),
        _arm(
            "majority_freeze",
            "action",
            "majority",
            "the alarm switches to frozen labels",
            {"monitor.action": "freeze"},
        ),
        _arm(
            "majority_kl",
            "paper",
            "majority",
            "KL to the start off the reward, 0.1",
            {"train.reward_kl_coef": 0.1},
        ),
        _arm(
            "majority_entropy",
            "paper",
            "majority",
            "entropy bonus, 0.01",
            {"train.objective_overrides": {"entropy_coef": 0.01}},
        ),
        _arm(
            "majority_rloo",
            "paper",
            "majority",
            "RLOO advantages instead of GRPO's",
            {"train.advantage": "rloo"},
        ),
        _arm(
            "majority_head_tail",
            "curriculum",
            "majority",
            "prompts rebalanced by vote share",
            {"curriculum.head_tail": 1.0},
        ),
        _arm(
            "majority_relift",
            "curriculum",
            "majority",
            "a supervised step on strong, rare votes every 5 steps",
            {"curriculum.supervised_every": 5},
        ),
    )


def _arm(name: str, group: str, kind: str, note: str, more: dict[str, Any] | None = None) -> Arm:
    return Arm(name, group, COLLAPSE | {"reward.kind": kind} | (more or {}), note)
