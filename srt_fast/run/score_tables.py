"""The tables of a run's evaluations: before and after, and the vote share as confidence."""

from __future__ import annotations

from typing import Any

from srt_fast.run.page import table

Row = dict[str, Any]

SCORE_LABELS = {
    "pass1": "pass@1",
    "maj": "majority vote",
    "gap": "majority minus pass@1",
    "vote_share": "vote share",
    "acc@first": "accuracy of the first turn",
    "acc@final": "accuracy at the end of the episode",
    "wrong_to_right": "wrong at first, right at the end",
    "right_to_wrong": "right at first, wrong at the end",
    "verdict_accuracy": "verdicts that are right",
    "verdict_no_answer": "verdicts that are neither 1 nor 0",
    "gv_gap": "accuracy of accepted answers, minus that of all",
    "maj_verdict": "vote weighted by verdicts",
}


def score_tables(rows: list[Row], summary: Row) -> str:
    """The first and the last evaluation. The summary's figures count more than theirs."""
    evals = [row for row in rows if row.get("kind") == "eval"]
    start = dict(evals[0]) if evals else {}
    end = dict(evals[-1]) if len(evals) > 1 else {}
    for name in ("pass1", "maj"):
        start[name] = summary.get(f"{name}_start", start.get(name))
        end[name] = summary.get(f"{name}_end", end.get(name))
    labels = SCORE_LABELS | {name: name for name in start if name.startswith("pass@")}
    labels["completion_tokens"] = "tokens per completion"
    body = []
    for name, label in labels.items():
        if start.get(name) is not None or end.get(name) is not None:
            change = _change(start.get(name), end.get(name), name)
            body.append((label, _score(start, name), _score(end, name), change))
    if not body:
        return "<p>no evaluations</p>"
    head = ("held-out", "before" + _at_step(start), "after" + _at_step(end), "change")
    return table(head, body, "scores") + _calibration(start, end)


def _at_step(row: Row) -> str:
    return f" (step {row['step']})" if "step" in row else ""


def _calibration(start: Row, end: Row) -> str:
    """How well the vote share predicts that the majority is right, and for how many prompts."""
    thresholds = [name.removeprefix("coverage@") for name in start if name.startswith("coverage@")]
    if not thresholds:
        return ""
    body = []
    for threshold in thresholds:
        cells = [
            f"{_score(row, f'maj@{threshold}')} of {_score(row, f'coverage@{threshold}')}"
            for row in (start, end)
        ]
        body.append((f"at least {threshold}", *cells))
    lead = (
        "<p>Vote share as confidence: how often the majority is right, of the prompts on which it "
        "has that share.</p>"
    )
    return lead + table(("vote share", "before", "after"), body, "scores")


def _score(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return "-"
    if name == "completion_tokens":
        return f"{value:.1f}"
    has_error = name == "pass1" and row.get("pass1_se") is not None
    error = f" ± {100 * row['pass1_se']:.1f}" if has_error else ""
    return f"{100 * value:.1f}{error} %"


def _change(start: float | None, end: float | None, name: str) -> str:
    if start is None or end is None:
        return "-"
    if name == "completion_tokens":
        return f"{end - start:+.1f}"
    return f"{100 * (end - start):+.1f} points"
