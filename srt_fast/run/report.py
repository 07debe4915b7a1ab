"""A finished or running run as one HTML file and one PNG, from the files in its folder.

report.html needs no network and no other file. The curves are inline SVG. Their text takes the
page's colour, so that it reads on light and on dark. Everything that comes from a run is escaped: a
completion is model output.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import statistics
from collections import Counter
from pathlib import Path

from srt_fast.errors import hide_passwords
from srt_fast.files import Row, write_atomically
from srt_fast.run.curves import bar_svg, limits_svg, overview, panel_svg
from srt_fast.run.page import html_text, page, table
from srt_fast.run.panels import panels_of
from srt_fast.run.records import RunRecord, read_record
from srt_fast.run.score_tables import score_tables

logger = logging.getLogger(__name__)

STEP_PARTS = {
    "sampling": "seconds_sample",
    "voting": "seconds_reward",
    "scoring": "seconds_score",
    "training": "seconds_train",
    "syncing": "seconds_sync",
}
"""The parts of a step's time that a run measures, and their metrics."""

COMPUTING_PARTS = {"sampling": "sample", "scoring": "score", "training": "train"}
"""The parts that have a limit, and how their metrics begin."""

NO_STEPS = "<p>no timed steps after the first</p>"
MAX_EVENTS = 50
MAX_AUDIT_EXAMPLES = 20


def write_report(run_dir: str | Path) -> tuple[Path, Path]:
    """Write report.html and report.png into the run's folder, and return their paths.

    Only metrics.jsonl must exist. Leaves out damaged rows and fields, and says so in the report and
    in one warning. Raises ValueError for a folder without metrics.jsonl.
    """
    run_dir = Path(run_dir)
    record = read_record(run_dir)
    rows = record.metrics
    facts = _facts(run_dir, record)
    title = f"{facts['recipe']}, seed {facts['seed']}"
    sections = {
        "Before and after": score_tables(rows, record.summary),
        "Curves": _curves(rows),
        "Where a step's time goes": _step_time(rows),
    }
    if any(row.get("train_flops") is not None for row in rows):
        sections["Distance to the limit"] = _limits(rows)
    sections["Events"] = _events(rows)
    if record.audit:
        sections["Second opinion on the vote"] = _audit(record.audit)
    sections["Sample completions"] = _samples(record.samples)
    sections["Hyperparameters"] = _hyperparameters(record.config)
    lead = _lead(facts)
    if record.damage:
        notice = f"damaged and left out: {', '.join(record.damage)}"
        logger.warning("%s: %s", run_dir, notice)
        lead = f"{lead}; {notice}"

    image = io.BytesIO()
    overview(rows, title).savefig(image, format="png", dpi=150)
    html = run_dir / "report.html"
    png = run_dir / "report.png"
    write_atomically(html, page(title, lead, sections))
    write_atomically(png, image.getvalue())
    return html, png


def _facts(run_dir: Path, record: RunRecord) -> Row:
    """recipe, seed, steps, seconds and run_dir: the summary's, or an unfinished run's so far.

    The seconds so far are those of the steps. The clock of the rows may have been set meanwhile.
    """
    train = [row for row in record.metrics if row["kind"] == "train"]
    facts = {
        "recipe": record.config.get("recipe", run_dir.name),
        "seed": record.config.get("train", {}).get("seed", "unknown"),
        "steps": max((row["step"] for row in record.metrics), default=0),
        "seconds": sum(row.get("seconds") or 0.0 for row in train),
        "run_dir": str(run_dir),
    }
    return {name: record.summary.get(name, value) for name, value in facts.items()}


def _lead(facts: Row) -> str:
    minutes, seconds = divmod(round(facts["seconds"]), 60)
    return f"{facts['steps']} steps in {minutes} min {seconds} s, {facts['run_dir']}"


def _curves(rows: list[Row]) -> str:
    return (
        f'<div class="curves">{"".join(panel_svg(panel, rows) for panel in panels_of(rows))}</div>'
    )


def _step_time(rows: list[Row]) -> str:
    """Medians over the steps. Leaves out the first one, which warms up."""
    # Rows of an older version lack scoring, which was in other parts, and may lack a part.
    train = [{"seconds_score": 0.0} | row for row in rows if row["kind"] == "train"]
    names = ("seconds", "tokens_per_second", *STEP_PARTS.values())
    steps = [row for row in train if all(row.get(name) is not None for name in names)][1:]
    if not steps:
        return NO_STEPS
    parts = {
        part: statistics.median(row[name] for row in steps) for part, name in STEP_PARTS.items()
    }
    parts["the rest"] = statistics.median(
        max(0.0, row["seconds"] - sum(row[name] for name in STEP_PARTS.values())) for row in steps
    )
    seconds = statistics.median(row["seconds"] for row in steps)
    speed = statistics.median(row["tokens_per_second"] for row in steps)
    text = (
        f"Median of the steps after the first: {seconds:.2f} s a step, {speed:,.0f} tokens per "
        "second. Syncing waits for rollouts under way, gives the sampler the new weights and "
        "checks them. Evaluations and checkpoints are not counted."
    )
    return f'<div class="bar">{bar_svg(parts)}</div><p>{text}</p>'


def _limits(rows: list[Row]) -> str:
    """Seconds and limit of each part that computes: medians over the steps after the first."""
    steps = [row for row in rows if row["kind"] == "train"][1:]
    bars = {}
    body = []
    for part, name in COMPUTING_PARTS.items():
        names = [f"seconds_{name}", f"{name}_mfu", f"{name}_flops"]
        names += ["sample_limit_seconds"] if name == "sample" else []
        timed = [row for row in steps if all(row.get(field) is not None for field in names)]
        if not timed:
            continue
        seconds = statistics.median(row[f"seconds_{name}"] for row in timed)
        limit = statistics.median(_limit_seconds(row, name) for row in timed)
        mfu = statistics.median(row[f"{name}_mfu"] for row in timed)
        flops = statistics.median(row[f"{name}_flops"] for row in timed)
        bars[part] = (seconds, limit)
        cells = (f"{seconds:.3g}", f"{limit:.3g}", f"{100 * mfu:.1f} %", f"{flops / 1e9:,.1f}")
        body.append((part, *cells))
    if not bars:
        return NO_STEPS
    messages = [row["message"] for row in rows if row.get("event") == "device_rates"]
    text = (
        "Medians of the steps after the first. The limit is the time of the model FLOPs at the "
        "measured rate. For decoding it is the time to read weights, keys and values at the "
        "measured bandwidth, if that is longer."
    )
    if messages:
        text += f" Rates {html_text(messages[-1])}."
    head = ("", "seconds", "limit, seconds", "MFU", "model GFLOPs")
    return f'<div class="bar">{limits_svg(bars)}</div>{table(head, body, "left")}<p>{text}</p>'


def _limit_seconds(row: Row, name: str) -> float:
    """The limit of a part in a step. That of sampling is logged: it has decoding's reads."""
    if name == "sample":
        return row["sample_limit_seconds"]
    return row[f"{name}_mfu"] * row[f"seconds_{name}"]


def _events(rows: list[Row]) -> str:
    """How often each event happened, and the last MAX_EVENTS in full."""
    fractions = [row.get("truncated") for row in rows if row["kind"] == "train"]
    truncated = [fraction for fraction in fractions if fraction is not None]
    lead = ""
    if truncated:
        percent = 100 * statistics.fmean(truncated)
        lead = f"<p>{percent:.1f} % of training completions were truncated.</p>"
    events = [row for row in rows if row["kind"] == "event"]
    if not events:
        return lead + "<p>no events</p>"
    counts = Counter(row["event"] for row in events)
    counts_text = ", ".join(f"{name}: {count}" for name, count in counts.most_common())
    body = [(row["step"], row["event"], _event_text(row)) for row in events[-MAX_EVENTS:]]
    return f"{lead}<p>{html_text(counts_text)}</p>" + table(("step", "event", "what"), body, "left")


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

    examples = [(row["step"], *example) for row in rows for example in row["examples"]]
    totals = f"<p>{html_text(describe_totals(sum_counts(rows)))}</p>"
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
        for prompt, group in itertools.groupby(step_samples, key=lambda row: row["prompt"]):
            completions = "".join(_completion(row) for row in group)
            parts.append(f'<div class="prompt"><pre>{html_text(prompt)}</pre>{completions}</div>')
    return "".join(parts)


def _completion(row: Row) -> str:
    vote = _word(row.get("majority"), "majority", "minority", "no vote")
    truth = _word(row.get("correct"), "correct", "wrong", "no gold")
    answer = "no answer" if row.get("answer") is None else f"answer {row['answer']}"
    badges = "".join(
        f'<span class="badge {text.split()[0]}">{text}</span>' for text in (vote, truth)
    )
    text = html_text(row["completion"])
    turns = "".join(_turn(turn) for turn in row.get("turns", ()))
    words = f"{badges}<b>{html_text(answer)}</b><pre>{text}</pre>"
    return f'<div class="completion">{words}{turns}</div>'


def _turn(turn: Row) -> str:
    """What a later turn of an episode asked, and what the model said."""
    reward = turn.get("reward")
    badge = "no reward" if reward is None else f"reward {reward:.3g}"
    question = html_text(turn["question"])
    return (
        f'<div class="turn"><pre>{question}</pre><span class="badge">{badge}</span>'
        f"<pre>{html_text(turn['completion'])}</pre></div>"
    )


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
        texts = {field: json.dumps(value, ensure_ascii=False) for field, value in fields.items()}
        body = [(field, hide_passwords(text)) for field, text in texts.items()]
        parts.append(
            f"<details open><summary>{html_text(name)}</summary>{table((), body, 'left')}</details>"
        )
    return "".join(parts)
