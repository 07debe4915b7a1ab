"""The experiment's answers in sentences. The numbers are those of page.findings."""

from __future__ import annotations

import statistics
from typing import Any

from srt_fast.experiment.grid import COLLAPSE, RISE
from srt_fast.experiment.measure import COLLAPSE_REWARD, FALL, WINDOW
from srt_fast.experiment.tables import points, spread

Row = dict[str, Any]

ARMS = (
    "Held-out pass@1 in points: the mean over seeds (lowest to highest). Collapses: the accuracy "
    f"is below the start after {WINDOW} steps with a mean pseudo-reward above "
    f"{COLLAPSE_REWARD:g}. This means little for a reward on another scale. Falls: the accuracy is "
    f"more than {100 * FALL:.0f} points below its peak until then. Time: of a step, relative to "
    "the plain vote's."
)
LEADS = (
    "Steps from the first alarm or warning to the fall, in runs that fell, and how often there was "
    "one in runs that did not. Runs in which the monitor acted are left out. A fall is seen at an "
    "evaluation."
)
RULES = (
    "Every rule judges the same logged looks. `10,000 looks` and `chance of 1 %`: the sequential "
    "test with `monitor.false_alarm_looks` or `monitor.false_alarm_chance`. `best look`: 10 points "
    "below the best of all looks, the rule before it."
)
STOPPING = (
    "majority: the accuracy at the step with the best agreement with the starting model's votes "
    "before the first alarm, in a run that went on (its last evaluation at or before that step). "
    "majority_stop: the weights that the monitor restored. Its best evaluation is the better of "
    "its own and that of the plain vote's run with the same seed."
)


def file_terms(reference: str) -> str:
    """What the columns of a file's grid mean. reference: the arm that times are relative to."""
    return (
        "- Accuracy is held-out pass@1 in points: the mean over seeds (lowest to highest).\n"
        "- Rise: from the start to the peak.\n"
        f"- Falls: the accuracy is more than {100 * FALL:.0f} points below its peak until then.\n"
        "- Collapses: it falls, and ends below its start.\n"
        f"- Time: of a step, relative to `{reference}`: a ratio of medians.\n"
        "- Tokens: what a step samples for training, a teacher's too.\n"
        "- Vote and labels: accuracy in points on the prompts of training, by gold answers, over "
        f"the {WINDOW} steps before the last evaluation until then. The vote is that of the "
        "policy's rollouts. Labels are what the reward agrees with, where a rollout does: with "
        "`ema` the teacher's."
    )


def introduction(numbers: dict[str, Any]) -> str:
    """What was run, and where."""
    rise = RISE["train"]
    collapse = COLLAPSE["train"]
    return (
        f"{machine(numbers['environment'])} Model and task: the embedded quickstart model on "
        f"3-digit sums. Seeds: {_join(numbers['seeds'])}. Rise: "
        f"{rise['steps']} steps of {rise['prompts_per_step']} prompts at lr {rise['lr']:g}, the "
        f"recipe's own settings. All other arms: {collapse['steps']} steps of "
        f"{collapse['prompts_per_step']} prompts at lr {collapse['lr']:g}."
    )


def file_introduction(numbers: dict[str, Any], note: str) -> str:
    """What a file's grid is, and where it was run. note: the file's."""
    seeds = f"Seeds: {_join(numbers['seeds'])}."
    return " ".join([machine(numbers["environment"]), *note.split(), seeds])


def machine(environment: Row) -> str:
    """What wrote the page, and where."""
    return (
        "Written by `srt-fast experiment` "
        f"(commit {environment['commit'] or 'unknown'}, torch {environment['torch']}, "
        f"{environment['cpu']}, {environment['cores']} cores, {environment['date']})."
    )


def answers(numbers: dict[str, Any]) -> str:
    """A list with a sentence on each question of the experiment."""
    lines = [
        _rise(numbers["rise"]),
        _collapse(numbers["runs"]),
        alarm(numbers["alarm"]),
        _early_stopping(numbers["early_stopping"]),
        _winner(numbers["winner"]),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _rise(rows: list[Row]) -> str:
    shares = [row["share"] for row in rows if row["share"] is not None]
    if not shares:
        return "Rise: not run."
    better = sum(row["maj_end"] > row["maj_start"] for row in rows)
    return (
        f"Rise: at its peak the plain vote has {100 * statistics.fmean(shares):.0f} % of the gain "
        f"with gold answers (lowest seed: {100 * min(shares):.0f} %). maj@k is higher at the end "
        f"than at the start in {better} of {len(rows)} runs."
    )


def _collapse(runs: list[Row]) -> str:
    votes = [run for run in runs if run["arm"] == "majority_long"]
    if not votes:
        return "Collapse: not run."
    steps = sorted(run["collapse_step"] for run in votes if run["collapse_step"] is not None)
    when = f" (at step {_join(steps)})" if steps else ""
    end = points(statistics.fmean(run["end"] for run in votes))
    return (
        f"Collapse: {len(steps)} of {len(votes)} long runs of the plain vote{when} came below the "
        f"starting model with a pseudo-reward above {COLLAPSE_REWARD:g}. pass@1 ends at {end} "
        "points on average."
    )


def alarm(rows: list[Row]) -> str:
    """Each rule of the alarm, on runs that fell and on runs that did not."""
    parts = []
    for row in rows:
        lead = row["lead"]
        when = ""
        if lead:
            when = f", a median of {lead['median']:g} steps ahead ({lead['min']} to {lead['max']})"
        parts.append(
            f"by the rule `{row['signal']}` it came before the fall in {row['early']} of "
            f"{row['falls']} runs that fell{when}, and falsely in {row['false_alarms']} of "
            f"{row['stable']} runs that did not"
        )
    return f"Alarm: {'; '.join(parts)}."


def _early_stopping(rows: list[Row]) -> str:
    descriptions = {
        "majority": "the step that the monitor would choose",
        "majority_stop": "the weights that it restored",
    }
    parts = []
    for arm, description in descriptions.items():
        losses = [row["loss"] for row in rows if row["arm"] == arm and row["loss"] is not None]
        loss = "not run"
        if losses:
            mean = points(statistics.fmean(losses))
            loss = f"{mean} points on average, at most {points(max(losses))}"
        parts.append(f"{description}: {loss}")
    return (
        "Early stopping without labels, loss against the best checkpoint chosen with labels: "
        f"{'; '.join(parts)}."
    )


def _winner(winner: Row | None) -> str:
    if winner is None:
        return "Rescue: no label-free reward function has a run of every seed."
    margin = ""
    if winner["next"]:
        margin = f", {points(winner['margin'])} points above `{winner['next']}`"
    return (
        f"Rescue: of the label-free reward functions `{winner['arm']}` ends highest, at "
        f"{spread(winner['end'])}{margin}."
    )


def _join(values: list[int]) -> str:
    return ", ".join(map(str, values))
