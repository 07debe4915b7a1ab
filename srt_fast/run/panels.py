"""The curves that a run's figure and report show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Series = tuple[str, str, str]  # kind of row, name of the metric, label


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    ylabel: str
    series: tuple[Series, ...]  # up to three curves
    shaded: tuple[int, int] | None = None  # two curves, by place: the area between them is shaded
    is_logarithmic: bool = False
    marks_alarms: bool = False  # a vertical line at each alarm of the monitor


PANELS = (
    Panel(
        "Accuracy",
        "fraction correct",
        (
            ("eval", "pass1", "held-out pass@1"),
            ("eval", "maj", "held-out majority"),
            ("train", "pass1", "training samples"),
        ),
    ),
    Panel(
        "Pseudo-reward against the truth",
        "fraction of samples",
        (
            ("train", "pseudo_reward", "pseudo-reward"),
            ("train", "pass1", "truly correct"),
            ("train", "label_accuracy", "majority label right"),
        ),
        shaded=(0, 1),
    ),
    Panel(
        "Agreement and collapse",
        "fraction",
        (
            ("train", "vote_share", "vote share"),
            ("train", "unanimous", "unanimous prompts"),
            ("train", "top_answer_share", "largest share of one answer"),
        ),
    ),
    Panel(
        "Held-out agreement with the start",
        "fraction of samples",
        (
            ("monitor", "probe_score", "collapse probe's score"),
            ("eval", "pass1", "held-out pass@1"),
        ),
        marks_alarms=True,
    ),
    Panel("Entropy", "nats per token", (("train", "entropy", "entropy"),)),
    Panel(
        "Completion length",
        "tokens",
        (("train", "completion_tokens", "training"), ("eval", "completion_tokens", "held-out")),
    ),
    Panel("Gradient norm", "norm before clipping", (("train", "grad_norm", "gradient norm"),)),
    Panel("Loss", "loss", (("train", "loss", "loss"),)),
    Panel(
        "Throughput", "tokens per second", (("train", "tokens_per_second", "tokens per second"),)
    ),
    Panel(
        "Model FLOPs utilization (MFU)",
        "fraction of the measured rate",
        (
            ("train", "sample_mfu", "sampling"),
            ("train", "score_mfu", "scoring"),
            ("train", "train_mfu", "training"),
        ),
    ),
    Panel(
        "Lost completions",
        "fraction of samples",
        (("train", "no_answer", "no answer"), ("train", "truncated", "truncated")),
    ),
    Panel(
        "Log-prob mismatch, sampler and trainer",
        "nats",
        (
            ("train", "check_mismatch_max", "largest after the sync"),
            ("train", "check_mismatch_mean", "mean after the sync"),
            ("train", "train_mismatch_max", "largest in training"),
        ),
        is_logarithmic=True,
    ),
)
"""All panels of the report. The PNG has the first six."""


def panels_of(rows: list[dict[str, Any]]) -> tuple[Panel, ...]:
    """The panels of these rows of metrics: without the monitor's if it took no look."""
    has_looks = any(row["kind"] == "monitor" for row in rows)
    return tuple(panel for panel in PANELS if has_looks or not panel.marks_alarms)
