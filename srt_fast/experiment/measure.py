"""What one run shows: from its folder's metrics.jsonl and summary.json to a few numbers.

Plain Python, no torch. Accuracy is held-out pass@1. A point is 0.01 of it. A step is one optimizer
batch.

Worked example: evaluations 0.50 (step 0), 0.70 (10), 0.55 (20) and 0.40 (30), a pseudo-reward of
0.97 from step 21 on, and the first alarm at step 14. The fall is at step 20: the accuracy is 15
points below its peak until then. So the alarm came 6 steps before the fall. The collapse is at step
30: the first evaluation below the start after ten steps whose mean pseudo-reward is above 0.95.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from srt_fast.experiment.grid import Arm
from srt_fast.experiment.rules import judge
from srt_fast.files import read_rows

Rows = Sequence[dict[str, Any]]

WINDOW = 10
"""Steps that a final value is the mean of, and also the pseudo-reward beside an evaluation."""
COLLAPSE_REWARD = 0.95
"""An accuracy below its start with a pseudo-reward above this is a collapse."""
FALL = 0.10
"""An accuracy that is more than this below its peak is a fall."""
ALARM = "alarm"
"""The alarm's name among the signals. The others are the signs of warnings."""
TURN_SCORES = ("verdict_accuracy", "gv_gap", "acc@first", "acc@final")
"""What an evaluation says about later turns of episodes."""
ACTIONS = ("stopped", "rolled_back", "frozen")
"""Events that the monitor logs when it acts."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, as its folder holds it."""

    arm: str
    seed: int
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    place: str = ""
    """Model and task of the arm."""

    def rows_of(self, kind: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl of one kind: "train", "eval", "monitor" or "event"."""
        return [row for row in self.rows if row["kind"] == kind]


class Labels(NamedTuple):
    """Accuracy of the vote, and of the labels that a run trains on: a teacher's, if there is one.

    Means over the WINDOW steps before `step`. None: not logged, or no gold answers.
    """

    step: int
    vote: float | None
    label: float | None


@dataclass(frozen=True)
class RunResult:
    """What one run shows. None: it did not happen, or was not logged."""

    arm: str
    seed: int
    seconds: float
    start: float
    peak: float
    peak_step: int
    end: float
    maj_start: float
    maj_end: float
    pseudo_reward: float | None
    top_answer_share: float | None
    label_accuracy: float | None
    collapse_step: int | None
    """The first evaluation below the start with a pseudo-reward above COLLAPSE_REWARD."""
    fall_step: int | None
    """The first evaluation more than FALL below the peak until then."""
    warning_steps: dict[str, int]
    """Step of each sign's first warning. ALARM is the alarm's."""
    looks: int
    """Looks of the collapse probe."""
    rule_steps: dict[str, int | None]
    """Step of the first alarm by each rule of RULES. None: never. A rule is missing if the rows do
    not have what it needs."""
    actions: str | None
    """What the monitor did, and when: "rolled back at 40, stopped at 84"."""
    restored_step: int | None
    """Step of the weights that the monitor restored last."""
    best_probe_step: int | None
    """The step that the monitor held for the best at its first alarm. It needs no labels."""
    best_probe_pass1: float | None
    """Accuracy of the last evaluation at or before that step."""
    seconds_per_step: float
    evaluations: list[list[float]]
    """Step, pass@1 and maj@k of each evaluation."""
    labels: list[Labels]
    """At each evaluation after the first."""
    tokens_per_step: float | None
    """Mean of the tokens that a step samples, a teacher's too."""
    turns: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The scores of later turns that are in TURN_SCORES, at the first and at the last evaluation.
    Empty in a run of single completions."""
    mean_label_accuracy: float | None = None
    """Mean over all steps of the metric label_accuracy."""
    mean_kept_label_accuracy: float | None = None
    """Mean over all steps of the metric kept_label_accuracy."""
    place: str = ""
    """Model and task of the arm."""


def read_run(folder: Path, arm: Arm, seed: int) -> FinishedRun:
    """A finished run. Raises ValueError for a summary that is no JSON and for damaged metrics."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'summary.json'}: expected JSON, got: {error}") from None
    rows = read_rows(folder / "metrics.jsonl")
    return FinishedRun(arm.name, seed, rows, summary, arm.place)


def read_runs(root: Path, arms: Iterable[Arm], seeds: Sequence[int]) -> list[FinishedRun]:
    """The finished runs of these arms and seeds. Runs that are not finished are left out."""
    runs = []
    for arm in arms:
        for seed in seeds:
            folder = root / f"{arm.label}-seed{seed}"
            if (folder / "summary.json").is_file():
                runs.append(read_run(folder, arm, seed))
    return runs


def can_measure(run: FinishedRun) -> bool:
    """Whether its evaluations have pass@1, which needs gold answers for all held-out prompts."""
    return all("pass1" in row for row in run.rows_of("eval"))


def measure(run: FinishedRun) -> RunResult:
    """The numbers of one run. After a stop, its end is that of the restored weights.

    Raises ValueError for evaluations without pass@1.
    """
    evaluations = run.rows_of("eval")
    if not can_measure(run):
        raise ValueError(
            "expected gold answers for all held-out prompts, with which the page measures, got "
            "some without"
        )
    train = run.rows_of("train")
    peak = max(evaluations, key=lambda row: row["pass1"])
    warning_steps = first_warnings(run)
    actions = [row for row in run.rows_of("event") if row["event"] in ACTIONS]
    names = [f"{row['event'].replace('_', ' ')} at {row['step']}" for row in actions]
    best_probe_step = _best_probe_step(run, warning_steps.get(ALARM))
    best_probe_pass1 = None
    if best_probe_step is not None:
        best_probe_pass1 = _pass1_at(evaluations, best_probe_step)
    return RunResult(
        arm=run.arm,
        seed=run.seed,
        seconds=run.summary["seconds"],
        start=run.summary["pass1_start"],
        peak=peak["pass1"],
        peak_step=peak["step"],
        end=run.summary["pass1_end"],
        maj_start=run.summary["maj_start"],
        maj_end=run.summary["maj_end"],
        pseudo_reward=_mean(train[-WINDOW:], "pseudo_reward"),
        top_answer_share=_mean(train[-WINDOW:], "top_answer_share"),
        label_accuracy=_mean(train[-WINDOW:], "label_accuracy"),
        collapse_step=_collapse_step(run),
        fall_step=_fall_step(evaluations),
        warning_steps=warning_steps,
        looks=len(run.rows_of("monitor")),
        rule_steps=judge(run.rows_of("monitor")),
        actions=", ".join(names) or None,
        restored_step=actions[-1].get("best_step") if actions else None,
        best_probe_step=best_probe_step,
        best_probe_pass1=best_probe_pass1,
        seconds_per_step=statistics.median(row["seconds"] for row in train),
        evaluations=[[row["step"], row["pass1"], row["maj"]] for row in evaluations],
        labels=_labels(run),
        tokens_per_step=_mean(train, "sampled_tokens"),
        turns=_turn_scores(evaluations),
        mean_label_accuracy=_mean(train, "label_accuracy"),
        mean_kept_label_accuracy=_mean(train, "kept_label_accuracy"),
        place=run.place,
    )


def first_warnings(run: FinishedRun) -> dict[str, int]:
    """Step of the first alarm (ALARM) and of each sign's first warning."""
    steps: dict[str, int] = {}
    for row in run.rows_of("event"):
        if row["event"] == "alarm":
            steps.setdefault(ALARM, row["step"])
        elif row["event"] == "warning":
            steps.setdefault(row["sign"], row["step"])
    return steps


def _fall_step(evaluations: Rows) -> int | None:
    peak = float("-inf")
    for row in evaluations:
        peak = max(peak, row["pass1"])
        if row["pass1"] < peak - FALL:
            return row["step"]
    return None


def _collapse_step(run: FinishedRun) -> int | None:
    train = []
    for row in run.rows:
        if row["kind"] == "train":
            train.append(row)
        elif row["kind"] == "eval" and row["pass1"] < run.summary["pass1_start"]:
            pseudo_reward = _mean(train[-WINDOW:], "pseudo_reward")
            if pseudo_reward is not None and pseudo_reward > COLLAPSE_REWARD:
                return row["step"]
    return None


def _labels(run: FinishedRun) -> list[Labels]:
    points = []
    train = []
    for row in run.rows:
        if row["kind"] == "train":
            train.append(row)
        elif row["kind"] == "eval" and train:
            window = train[-WINDOW:]
            vote = _mean(window, "vote_accuracy")
            points.append(Labels(row["step"], vote, _mean(window, "label_accuracy")))
    return points


def _turn_scores(evaluations: Rows) -> dict[str, tuple[float, float]]:
    """First and last value of each score that both of these evaluations have."""
    return {
        name: (evaluations[0][name], evaluations[-1][name])
        for name in TURN_SCORES
        if all(row.get(name) is not None for row in (evaluations[0], evaluations[-1]))
    }


def _best_probe_step(run: FinishedRun, alarm_step: int | None) -> int | None:
    rows = run.rows_of("monitor")
    if alarm_step is not None:
        rows = [row for row in rows if row["step"] <= alarm_step]
    return rows[-1]["best_step"] if rows else None


def _pass1_at(evaluations: Rows, step: int) -> float:
    """The accuracy of the last evaluation at or before a step."""
    earlier = [row for row in evaluations if row["step"] <= step]
    return max(earlier, key=lambda row: row["step"])["pass1"]


def _mean(rows: Rows, name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return statistics.fmean(values) if values else None
