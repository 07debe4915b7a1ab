"""Settings of the reward, of the curriculum, and of the monitor that watches for a collapse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from srt_fast.config.fields import (
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Table,
    section,
)

DESIGNS = Path(__file__).parents[1] / "rewards" / "designs"
REWARD_KINDS = tuple(sorted(file.stem for file in DESIGNS.rglob("[!_]*.py")))
"""The reward functions: one for each file of srt_fast/rewards/designs and its folder episodes."""
REWARDS_WITH_GOLD = ("oracle",)
"""The kinds that need gold answers."""
REWARDS_WITH_TEACHER = ("ema", "pool")
"""The kinds whose teacher is a moving average of the policy's weights."""

if TYPE_CHECKING:
    RewardKind = str  # a type checker cannot list a folder
else:
    RewardKind = Literal[REWARD_KINDS]

ShareOver = Literal["all", "valid"]
"""What a vote share counts over: all completions of a group, or those with an answer."""


@section("reward.")
class RewardConfig:
    """The reward function, and how its vote is counted."""

    kind: RewardKind = "ema"
    """The reward function, a file of srt_fast/rewards/designs. ema: agreement with the vote of a
    moving-average teacher. pool: with the joint vote of teacher and policy. frozen: with the
    starting model's vote. majority: with the policy's own vote. oracle: with gold answers.
    docs/rewards.md compares all of them. docs/episodes.md has those of several turns."""
    params: Table = Field(default_factory=dict)
    """Settings of the reward function, such as tau=0.6 (threshold) or fraction=0.3 (easiest)."""
    resample: NonNegative = 0
    """Sample at most so many more batches until the reward function keeps train.prompts_per_step
    prompts. Used with kinds that mask prompts (threshold, easiest)."""
    share_over: ShareOver = "all"
    """The vote share counts over all completions of a group, or over those with an answer
    ("valid"). With "all", completions without an answer lower the share."""
    truncated: Literal["vote", "no_answer", "mask"] = "vote"
    """A completion that was truncated at max_new_tokens votes if it has an answer ("vote"), counts
    as one without an answer ("no_answer"), or is also left out of the loss ("mask")."""
    audit_groups: NonNegative = 0
    """Groups per step whose votes math-verify checks in a separate process (audit.jsonl). The audit
    changes no step and delays none."""

    @property
    def needs_gold(self) -> bool:
        """Whether gold answers are the labels."""
        return self.kind in REWARDS_WITH_GOLD or self.params.get("labels") == "oracle"

    @property
    def needs_teacher(self) -> bool:
        """Whether a moving average of the policy's weights votes."""
        return self.kind in REWARDS_WITH_TEACHER or self.params.get("labels") == "ema"


@section("curriculum.")
class CurriculumConfig:
    """Weights of prompts, and supervised steps between the policy-gradient steps."""

    head_tail: NonNegativeFloat = 0.0
    """Weight a prompt by (1 - vote share) to this power, so that hard prompts count more. 0:
    off."""
    repeat_hard: Fraction = 0.0
    """Sample this part of the prompts that train a second time in the same step. They are drawn
    with chances in proportion to 1 - vote share. Unanimous prompts and those without any answer are
    never drawn. A step's metrics are over all of its rollouts, these too. 0: off."""
    easy_cap: NonNegative = 0
    """Only so many of the completions that agree with a prompt's majority train; all of them stay
    in the vote and in the baseline. Of episodes this is about the first turn. 0: all train."""
    supervised_every: NonNegative = 0
    """Take one supervised step every so many steps, on completions that supervised_pick names. 0:
    never."""
    supervised_pick: Literal["majority", "likeliest", "accepted"] = "majority"
    """What a supervised step trains on. "majority": the majority's completion, of prompts whose
    vote was strong but rare. "likeliest": of every prompt the completion with the highest log-prob,
    summed over its tokens (SFT-Sharpening). "accepted": of every prompt the completion of which the
    largest part of the policy's own verdicts is 1, at least half; for reward functions whose second
    turn is a verdict. self_rewarding_correction picks by itself, whatever stands here."""
    supervised_share: Fraction = 0.5
    """A vote is rare if the majority's share is at most this."""
    supervised_lead: PositiveFloat = 2.0
    """A vote is strong if the majority has at least so many times the votes of the next answer."""


@section("monitor.")
class MonitorConfig:
    """The monitor, which watches for a collapse."""

    action: Literal["log", "stop", "rollback", "freeze"] = "log"
    """What an alarm does. "log": nothing but a log entry. "stop": the run ends with the best
    weights. "rollback": the run goes back to the best weights with half the learning rate (three
    times, then it stops). "freeze": the starting model's votes become the labels."""
    every: NonNegative = 5
    """Sample the monitor's held-out prompts every so many steps. 0: never. The actions but "log"
    need them to find the best weights."""
    prompts: Positive = 64
    """Held-out prompts of the monitor. They are other prompts than the evaluation's if there are
    enough."""
    samples: Annotated[int, Field(ge=2)] = 4
    """Completions of each of these prompts, at least 2: one half chooses what the other half
    measures for the alarm's reference."""
    false_alarm_looks: Annotated[int, Field(ge=2)] | None = None
    """Least mean number of looks between false alarms. None: 10000, unless false_alarm_chance is
    set."""
    false_alarm_chance: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest chance of any false alarm, over any number of looks. Takes the place of
    false_alarm_looks. An alarm comes a little later, the more so the longer a run is."""
    labels: Literal["start", "gold"] = "start"
    """What these completions are compared with: the starting model's votes ("start"), or gold
    answers."""

    def __post_init__(self) -> None:
        if self.action != "log" and not self.every:
            raise ValueError(
                f"monitor.every: expected at least 1 with monitor.action={self.action!r}, got 0"
            )
        if self.false_alarm_looks is not None and self.false_alarm_chance is not None:
            raise ValueError(
                "monitor.false_alarm_chance: expected none with monitor.false_alarm_looks="
                f"{self.false_alarm_looks}, got {self.false_alarm_chance:g}"
            )
