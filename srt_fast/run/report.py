"""A finished or running run as one HTML file and one PNG, from the files in its folder.

report.html needs no network and no other file. The curves are inline SVG. Their text takes the
page's colour, so that it reads on light and on dark. Everything that comes from a run is escaped: a
completion is model output.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from srt_fast.files import read_rows
from srt_fast.run.curves import bar_svg, overview, panel_svg
from srt_fast.run.page import page, table
from srt_fast.run.panels import PANELS
from srt_fast.run.score_tables import score_tables

Row = dict[str, Any]

STEP_PARTS = {
    "sampling": "seconds_sample",
    "voting": "seconds_reward",
    "training": "seconds_train",
    "syncing": "seconds_sync",
}
"""The parts of a step's time that a run measures, and their metrics."""

MAX_EVENTS = 50
MAX_AUDIT_EXAMPLES = 20


def write_report(run_dir: str | Path) -> tuple[Path, Path]:
    """Write report.html and report.png into the run's folder, and return their paths.

    config.json, samples.jsonl, audit.jsonl and summary.json may be missing. Raises ValueError for a
    folder without metrics.jsonl and for broken files.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: expected a run's folder, got none")
    if not (run_dir / "metrics.jsonl").is_file():
        raise ValueError(f"{run_dir}: expected a run's folder with a metrics.jsonl, got none in it")
    rows = read_rows(run_dir / "metrics.jsonl")
    audit_rows = _read_rows_if_any(run_dir / "audit.jsonl")
    config = _read_json(run_dir / "config.json")
    summary = _read_json(run_dir / "summary.json")
    facts = _facts(run_dir, config, summary, rows)
    title = f"{facts['recipe']}, seed {facts['seed']}"
    sections = {
        "Before and after": score_tables(rows, summary),
        "Curves": _curves(rows),
        "Where a step's time goes": _step_time(rows),
        "Events": _events(rows),
    }
    if audit_rows:
        sections["Second opinion on the vote"] = _audit(audit_rows)
    sections["Sample completions"] = _samples(_read_rows_if_any(run_dir / "samples.jsonl"))
    sections["Hyperparameters"] = _hyperparameters(config)

    png = run_dir / "report.png"
    overview(rows, title).savefig(png, dpi=150)
    html = run_dir / "report.html"
    html.write_text(page(title, _lead(facts), sections), encoding="utf-8", errors="replace")
    return html, png


def _read_rows_if_any(path: Path) -> list[Row]:
    return read_rows(path) if path.is_file() else []


def _read_json(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON document, got a broken one ({error})") from error


def _facts(run_dir: Path, config: Row, summary: Row, rows: list[Row]) -> Row:
    """recipe, seed, steps, seconds and run_dir: the summary's, or an unfinished run's so far."""
    facts = {
        "recipe": config.get("recipe", run_dir.name),
        "seed": config.get("train", {}).get("seed", "unknown"),
        "steps": max((row["step"] for row in rows), default=0),
        "seconds": rows[-1]["time"] - rows[0]["time"] if rows else 0.0,
        "run_dir": str(run_dir),
    }
    return {name: summary.get(name, value) for name, value in facts.items()}


def _lead(facts: Row) -> str:
    minutes, seconds = divmod(round(facts["seconds"]), 60)
    return f"{facts['steps']} steps in {minutes} min {seconds} s, {facts['run_dir']}"


def _curves(rows: list[Row]) -> str:
    return f'<div class="curves">{"".join(panel_svg(panel, rows) for panel in PANELS)}</div>'


def _step_time(rows: list[Row]) -> str:
    """Medians over the steps. Leaves out the first one, which warms up."""
    steps = [row for row in rows if row.get("kind") == "train" and row.get("seconds")][1:]
    if not steps:
        return "<p>no timed steps after the first</p>"
    parts = {
        part: statistics.median(row[name] for row in steps) for part, name in STEP_PARTS.items()
    }
    parts["the rest"] = statistics.median(
        row["seconds"] - sum(row[name] for name in STEP_PARTS.values()) for row in steps
    )
    seconds = statistics.median(row["seconds"] for row in steps)
    speed = statistics.median(row["tokens_per_second"] for row in steps)
    text = (
        f"Median of the steps after the first: {seconds:.2f} s a step, {speed:,.0f} tokens per "
        "second. Syncing waits for rollouts under way, gives the sampler the new weights and "
        "checks them. Evaluations and checkpoints are not counted."
    )
    return f'<div class="bar">{bar_svg(parts)}</div><p>{text}</p>'


def _events(rows: list[Row]) -> str:
    """How often each event happened, and the last MAX_EVENTS in full."""
    fractions = [row.get("truncated") for row in rows if row.get("kind") == "train"]
    truncated = [fraction for fraction in fractions if fraction is not None]
    lead = ""
    if truncated:
        percent = 100 * statistics.fmean(truncated)
        lead = f"<p>{percent:.1f} % of training completions were truncated.</p>"
    events = [row for row in rows if row.get("kind") == "event"]
    if not events:
        return lead + "<p>no events</p>"
    counts = Counter(str(row.get("event", "event")) for row in events)
    counts_text = ", ".join(f"{name}: {count}" for name, count in counts.most_common())
    body = [
        (row["step"], row.get("event", "event"), _event_text(row)) for row in events[-MAX_EVENTS:]
    ]
    return f"{lead}<p>{escape(counts_text)}</p>" + table(("step", "event", "what"), body, "left")


def _event_text(row: Row) -> str:
    """An event's message and its figures."""
    names = ("step", "kind", "time", "event", "message")
    figures = {name: value for name, value in row.items() if name not in names}
    parts = (str(row.get("message", "")), json.dumps(figures) if figures else "")
    return " ".join(part for part in parts if part)


def _audit(rows: list[Row]) -> str:
    """The totals, and the last pairs on which vote and math-verify disagree."""
    # Imports torch. A report without an audit should not wait for that.
    from srt_fast.rewards.audit import describe_totals, sum_counts

    examples = [(row["step"], *example) for row in rows for example in row.get("examples", [])]
    totals = f"<p>{escape(describe_totals(sum_counts(rows)))}</p>"
    if not examples:
        return totals
    head = ("step", "what", "majority", "other answer")
    return totals + table(head, examples[-MAX_AUDIT_EXAMPLES:], "left")


def _samples(samples: list[Row]) -> str:
    """The completions of the first and of the last step that has any."""
    if not samples:
        return "<p>no samples</p>"
    steps = [row["step"] for row in samples]
    parts = []
    for step in sorted({min(steps), max(steps)}):
        parts.append(f"<h3>Step {step}</h3>")
        step_samples = [row for row in samples if row["step"] == step]
        for prompt, group in itertools.groupby(step_samples, key=lambda row: row.get("prompt", "")):
            completions = "".join(_completion(row) for row in group)
            parts.append(f'<div class="prompt"><pre>{escape(str(prompt))}</pre>{completions}</div>')
    return "".join(parts)


def _completion(row: Row) -> str:
    vote = _word(row.get("majority"), "majority", "minority", "no vote")
    truth = _word(row.get("correct"), "correct", "wrong", "no gold")
    answer = "no answer" if row.get("answer") is None else f"answer {row['answer']}"
    badges = "".join(
        f'<span class="badge {text.split()[0]}">{text}</span>' for text in (vote, truth)
    )
    text = escape(str(row.get("completion", "")))
    return f'<div class="completion">{badges}<b>{escape(answer)}</b><pre>{text}</pre></div>'


def _word(value: bool | None, if_true: str, if_false: str, if_none: str) -> str:
    if value is None:
        return if_none
    return if_true if value else if_false


def _hyperparameters(config: Row) -> str:
    if not config:
        return "<p>no config.json</p>"
    sections = {name: value for name, value in config.items() if isinstance(value, dict)}
    run_fields = {name: value for name, value in config.items() if name not in sections}
    parts = []
    for name, fields in ({"run": run_fields} | sections).items():
        body = [(field, json.dumps(value, ensure_ascii=False)) for field, value in fields.items()]
        parts.append(
            f"<details open><summary>{escape(name)}</summary>{table((), body, 'left')}</details>"
        )
    return "".join(parts)
