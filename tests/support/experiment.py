"""Finished runs of an experiment, made from a few numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srt_fast.experiment.measure import FinishedRun

Event = tuple[int, str, dict[str, Any]]

FALLING = {0: 0.50, 10: 0.70, 20: 0.55, 30: 0.40}
"""Accuracy by step: the worked example of measure.py."""
RISING = {0: 0.50, 10: 0.70, 20: 0.80, 30: 0.90}
WARNINGS: list[Event] = [
    (12, "warning", {"sign": "length"}),
    (14, "alarm", {"score": 0.5, "reference": 0.7}),
    (16, "alarm", {"score": 0.4, "reference": 0.7}),
]


def make_run(
    arm: str,
    accuracy: dict[int, float],
    seed: int = 0,
    *,
    pseudo_reward: float = 0.6,
    events: Sequence[Event] = (),
    probe_scores: dict[int, float] | None = None,
    seconds: float = 1.0,
    place: str = "",
    turns: dict[int, dict[str, float]] | None = None,
) -> FinishedRun:
    """A run with an evaluation at each step of `accuracy`.

    pseudo_reward: of the steps up to 20; after them it is 0.97. events: step, name and values.
    probe_scores: score by step. turns: scores of later turns, by step. seconds: of one step.
    """
    rows = []
    best_step = 0
    for step in range(max(accuracy) + 1):
        if step:
            reward = 0.97 if step > 20 else pseudo_reward
            rows.append(_train_row(step, reward, seconds))
        if probe_scores and step in probe_scores:
            best_step = max(
                (earlier for earlier in probe_scores if earlier <= step),
                key=lambda earlier: (probe_scores[earlier], -earlier),
            )
            rows.append(look_row(step, probe_scores[step]) | {"best_step": best_step})
        for event_step, name, values in events:
            if event_step == step:
                rows.append({"step": step, "kind": "event", "event": name, **values})
        if step in accuracy:
            pass1 = accuracy[step]
            scores = {"pass1": pass1, "maj": pass1 + 0.05, **(turns or {}).get(step, {})}
            rows.append({"step": step, "kind": "eval", **scores})
    first, *_, last = accuracy.values()
    summary = {
        "seconds": 9.0,
        "pass1_start": first,
        "pass1_end": last,
        "maj_start": first + 0.05,
        "maj_end": last + 0.05,
    }
    return FinishedRun(arm, seed, rows, summary, place)


def look_row(step: int, score: float) -> dict[str, Any]:
    """A look at 200 samples."""
    half = {f"probe_agreeing_{number}": round(100 * score) for number in (1, 2)}
    return (
        {"step": step, "kind": "monitor", "probe_score": score}
        | half
        | {
            "probe_samples_1": 100,
            "probe_samples_2": 100,
        }
    )


def _train_row(step: int, pseudo_reward: float, seconds: float) -> dict[str, Any]:
    return {
        "step": step,
        "kind": "train",
        "pseudo_reward": pseudo_reward,
        "top_answer_share": 0.25,
        "vote_accuracy": 0.4 + step / 100,
        "label_accuracy": 0.5,
        "sampled_tokens": 100 + step,
        "seconds": seconds,
    }


def save_run(root: Path, run: FinishedRun) -> None:
    """Write the run's folder."""
    folder = root / f"{f'{run.place}-' if run.place else ''}{run.arm}-seed{run.seed}"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.rows))
    (folder / "summary.json").write_text(json.dumps(run.summary))
