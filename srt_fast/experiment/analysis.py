"""From run folders to numbers: plain Python on metrics.jsonl and summary.json, no torch.

Accuracy is held-out pass@1, a point is 0.01 of it, and a step one optimizer batch.

Worked example: evaluations 0.50 (step 0), 0.70 (10), 0.55 (20), 0.40 (30), pseudo-reward 0.97 from step 21 on, first alarm at
step 14. The run fell at 20 (15 points below its peak so far), so the alarm led by 6 steps; it collapsed at 30, the first
evaluation below the start whose last ten pseudo-rewards average above 0.95.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srt_fast.experiment.grid import Arm
from srt_fast.files import read_rows

WINDOW = 10  # steps that a final value, and the pseudo-reward beside an evaluation, are the mean of
HACKED = 0.95  # a pseudo-reward above it, with the accuracy below its start, is a collapse
FALL = 0.10  # how far below its peak so far a run has fallen
ALARM = "alarm"  # the composite, beside the causes of single warnings
ACTIONS = ("stopped", "rolled_back", "frozen")  # the monitor's events


@dataclass(frozen=True)
class Run:
    """A finished run as it lies in its folder."""

    arm: str
    seed: int
    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    def kind(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == kind]


@dataclass(frozen=True)
class Measured:
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
    collapsed: int | None
    """Step of the first evaluation below the start with a pseudo-reward above HACKED."""
    fell: int | None
    """Step of the first evaluation more than FALL below the peak so far."""
    warnings: dict[str, int]
    """Step of each cause's first warning; ALARM is the composite's."""
    action: str | None
    """What the monitor did, and when: "rolled back at 40, stopped at 84"."""
    restored: int | None
    """Step of the weights that the monitor went back to last."""
    chosen: int | None
    """Step of the best agreement with the starting model's votes before the first alarm: what needs no labels to choose."""
    chosen_pass1: float | None
    seconds_per_step: float
    evaluations: list[list[float]]
    """Step, pass@1 and maj@k of each."""


def read_run(folder: Path, arm: str, seed: int) -> Run:
    """A finished run. ValueError where its files are not whole."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'summary.json'}: expected JSON, got: {error}") from None
    return Run(arm, seed, read_rows(folder / "metrics.jsonl"), summary)


def read_runs(root: Path, arms: Iterable[Arm], seeds: Sequence[int]) -> list[Run]:
    """The finished runs of these arms and seeds."""
    named = [(root / f"{arm.name}-seed{seed}", arm.name, seed) for arm in arms for seed in seeds]
    return [
        read_run(folder, arm, seed)
        for folder, arm, seed in named
        if (folder / "summary.json").is_file()
    ]


def measure(run: Run) -> Measured:
    """The numbers of one run. Its end is the summary's: after a stop, that of the restored weights."""
    evaluations, train, warnings = run.kind("eval"), run.kind("train"), first_warnings(run)
    best = max(evaluations, key=lambda row: row["pass1"])
    chosen = choose_without_labels(run, warnings.get(ALARM))
    acted = [row for row in run.kind("event") if row["event"] in ACTIONS]
    return Measured(
        arm=run.arm,
        seed=run.seed,
        seconds=run.summary["seconds"],
        start=run.summary["pass1_start"],
        peak=best["pass1"],
        peak_step=best["step"],
        end=run.summary["pass1_end"],
        maj_start=run.summary["maj_start"],
        maj_end=run.summary["maj_end"],
        **{
            name: _mean(train[-WINDOW:], name)
            for name in ("pseudo_reward", "top_answer_share", "label_accuracy")
        },
        collapsed=first_collapse(run),
        fell=first_fall(evaluations),
        warnings=warnings,
        action=", ".join(f"{row['event'].replace('_', ' ')} at {row['step']}" for row in acted)
        or None,
        restored=acted[-1].get("best_step") if acted else None,
        chosen=chosen,
        chosen_pass1=None if chosen is None else _evaluated(evaluations, chosen),
        seconds_per_step=statistics.median(row["seconds"] for row in train),
        evaluations=[[row["step"], row["pass1"], row["maj"]] for row in evaluations],
    )


def first_fall(evaluations: Sequence[dict]) -> int | None:
    peak = float("-inf")
    for row in evaluations:
        peak = max(peak, row["pass1"])
        if row["pass1"] < peak - FALL:
            return row["step"]
    return None


def first_collapse(run: Run) -> int | None:
    train, start = [], run.summary["pass1_start"]
    for row in run.rows:
        if row["kind"] == "train":
            train.append(row)
        elif (
            row["kind"] == "eval"
            and row["pass1"] < start
            and (_mean(train[-WINDOW:], "pseudo_reward") or 0) > HACKED
        ):
            return row["step"]
    return None


def first_warnings(run: Run) -> dict[str, int]:
    first: dict[str, int] = {}
    for row in run.kind("event"):
        if row["event"] in ("warning", "alarm"):
            first.setdefault(ALARM if row["event"] == "alarm" else row["cause"], row["step"])
    return first


def choose_without_labels(run: Run, alarm: int | None) -> int | None:
    """The step that the monitor held for the best at its first alarm, by agreement with the starting model's votes."""
    looks = [row for row in run.kind("monitor") if alarm is None or row["step"] <= alarm]
    return looks[-1]["best_step"] if looks else None


def _evaluated(evaluations: Sequence[dict], step: int) -> float:
    """The accuracy at the nearest evaluation at or before a step."""
    return max((row for row in evaluations if row["step"] <= step), key=lambda row: row["step"])[
        "pass1"
    ]


def _mean(rows: Sequence[dict], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return statistics.fmean(values) if values else None


def rise(measured: Sequence[Measured]) -> list[dict]:
    """Per seed, the plain vote's gain at its peak as a share of the gain with gold answers."""
    oracles = {each.seed: each for each in measured if each.arm == "rise_oracle"}
    rows = []
    for vote in (each for each in measured if each.arm == "rise_majority" and each.seed in oracles):
        gold = oracles[vote.seed]
        gain = gold.peak - gold.start
        rows.append(
            {
                "seed": vote.seed,
                "start": vote.start,
                "peak": vote.peak,
                "oracle_peak": gold.peak,
                "share": (vote.peak - vote.start) / gain if gain > 0 else None,
                "maj_start": vote.maj_start,
                "maj_end": vote.maj_end,
            }
        )
    return rows


def compare(arms: Iterable[Arm], measured: Sequence[Measured]) -> list[dict]:
    """Per arm: how high its runs came, where they ended, and what a step cost beside the plain vote's. None: not run."""
    plain = [each.seconds_per_step for each in measured if each.arm == "majority"]
    rows = []
    for arm in arms:
        runs = [each for each in measured if each.arm == arm.name]
        seconds = statistics.median(each.seconds_per_step for each in runs) if runs else None
        rows.append(
            {
                "arm": arm.name,
                "group": arm.group,
                "note": arm.note,
                "runs": len(runs),
                **{
                    name: _spread([getattr(each, name) for each in runs])
                    for name in ("peak", "end", "maj_end")
                },
                "collapsed": sum(each.collapsed is not None for each in runs),
                "fell": sum(each.fell is not None for each in runs),
                "ended_below_start": sum(each.end < each.start for each in runs),
                "relative_seconds": seconds / statistics.median(plain)
                if seconds and plain and arm.group != "rise"
                else None,
            }
        )
    return rows


def warning_times(arms: Iterable[Arm], measured: Sequence[Measured]) -> list[dict]:
    """Per signal, composite first: how many steps before the fall it warned, where it did not, and where it need not have.

    Runs on which the monitor acted are left out: what it prevented would count as a false alarm.
    """
    acting = {arm.name for arm in arms if arm.group == "action"}
    runs = [each for each in measured if each.arm not in acting]
    fell, stood = (
        [each for each in runs if each.fell is not None],
        [each for each in runs if each.fell is None],
    )
    causes = {cause for each in runs for cause in each.warnings}
    rows = []
    for cause in sorted(causes, key=lambda cause: (cause != ALARM, cause)):
        leads = [each.fell - each.warnings[cause] for each in fell if cause in each.warnings]
        rows.append(
            {
                "signal": cause,
                "fell": len(fell),
                "before": sum(lead > 0 for lead in leads),
                "late": sum(lead <= 0 for lead in leads),
                "never": len(fell) - len(leads),
                "lead": {"median": statistics.median(leads), "min": min(leads), "max": max(leads)}
                if leads
                else None,
                "stood": len(stood),
                "false_alarms": sum(cause in each.warnings for each in stood),
            }
        )
    return rows


def early_stopping(measured: Sequence[Measured]) -> list[dict]:
    """What stopping by the monitor alone loses against the best evaluation, which takes labels to choose.

    The plain vote's runs went on: the accuracy is that of the last evaluation at or before the step the monitor would choose.
    Runs of majority_stop did stop; their best is the better of their own and the plain vote's with that seed.
    """
    plain = {each.seed: each for each in measured if each.arm == "majority"}
    rows = [_stopped(each, each.chosen, each.chosen_pass1, each) for each in plain.values()]
    return rows + [
        _stopped(
            each,
            each.restored,
            each.end,
            max(each, plain.get(each.seed, each), key=lambda run: run.peak),
        )
        for each in measured
        if each.arm == "majority_stop"
    ]


def _stopped(run: Measured, step: int | None, pass1: float | None, best: Measured) -> dict:
    return {
        "arm": run.arm,
        "seed": run.seed,
        "alarm": run.warnings.get(ALARM),
        "step": step,
        "pass1": pass1,
        "best_step": best.peak_step,
        "best": best.peak,
        "loss": None if pass1 is None else best.peak - pass1,
    }


def winner(compared: Sequence[dict], seeds: int) -> dict | None:
    """The label-free feedback with the highest mean end, and its margin. Only arms with a run of every seed take part."""
    able = [
        row
        for row in compared
        if row["group"] in ("collapse", "design")
        and row["runs"] == seeds
        and row["arm"] != "oracle"
        and not row["arm"].endswith("_long")
    ]  # those had more steps
    ranked = sorted(able, key=lambda row: row["end"]["mean"], reverse=True)
    if not ranked:
        return None
    first, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    return {
        "arm": first["arm"],
        "end": first["end"],
        "next": second and second["arm"],
        "margin": second and first["end"]["mean"] - second["end"]["mean"],
    }


def _spread(values: Sequence[float]) -> dict | None:
    return (
        {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}
        if values
        else None
    )
