"""A finished (or running) run as one HTML file and one PNG, from the files in its folder.

report.html needs no network and no other file: the curves are inline SVG whose lettering takes the page's colour, so
that they read on light and on dark. Everything that comes from a run is escaped: a completion is model output.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from srt_fast.files import read_rows
from srt_fast.run.curves import PANELS, bar_svg, overview, svg

Row = dict[str, Any]

STEP_PARTS = {
    "sampling": "seconds_sample",
    "voting": "seconds_reward",
    "training": "seconds_train",
    "syncing": "seconds_sync",
}


def write_report(run_dir: str | Path) -> tuple[Path, Path]:
    """Write report.html and report.png into the run's folder and return their paths.

    metrics.jsonl must be there; config.json, samples.jsonl and summary.json are used where they are.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: expected a run's folder, found none")
    if not (run_dir / "metrics.jsonl").is_file():
        raise ValueError(
            f"{run_dir}: expected a run's folder with a metrics.jsonl, found none in it"
        )
    rows = read_rows(run_dir / "metrics.jsonl")
    files = (run_dir / "samples.jsonl", run_dir / "audit.jsonl")
    samples, audited = (read_rows(file) if file.is_file() else [] for file in files)
    config, summary = _read_json(run_dir / "config.json"), _read_json(run_dir / "summary.json")
    facts = _facts(run_dir, config, summary, rows)

    png = run_dir / "report.png"
    overview(rows, f"{facts['recipe']}, seed {facts['seed']}").savefig(png, dpi=150)
    html = run_dir / "report.html"
    html.write_text(
        _page(facts, rows, samples, audited, config, summary), encoding="utf-8", errors="replace"
    )
    return html, png


def _read_json(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON document, got a broken one ({error})") from error


def _facts(run_dir: Path, config: Row, summary: Row, rows: list[Row]) -> Row:
    """The run in five words, from the summary or, for an unfinished run, from what there is."""
    steps = max((row["step"] for row in rows), default=0)
    facts = {
        "recipe": config.get("recipe", run_dir.name),
        "seed": config.get("train", {}).get("seed", "unknown"),
    }
    facts |= {
        "steps": steps,
        "seconds": rows[-1]["time"] - rows[0]["time"] if rows else 0.0,
        "run_dir": str(run_dir),
    }
    return {name: summary.get(name, value) for name, value in facts.items()}


def _page(
    facts: Row, rows: list[Row], samples: list[Row], audited: list[Row], config: Row, summary: Row
) -> str:
    title = f"{facts['recipe']}, seed {facts['seed']}"
    minutes, seconds = divmod(round(facts["seconds"]), 60)
    lead = f"{facts['steps']} steps in {minutes} min {seconds} s, {facts['run_dir']}"
    sections = {
        "Before and after": _scores(rows, summary),
        "Curves": f'<div class="curves">{"".join(svg(panel, rows) for panel in PANELS)}</div>',
        "Where a step's time goes": _step_time(rows),
        "Events": _events(rows),
        **({"Second opinion on the vote": _audit(audited)} if audited else {}),
        "Sample completions": _samples(samples),
        "Hyperparameters": _hyperparameters(config),
    }
    body = "".join(
        f"<section><h2>{name}</h2>{content}</section>" for name, content in sections.items()
    )
    return _HTML.format(title=escape(title), lead=escape(lead), style=_CSS, body=body)


def _scores(rows: list[Row], summary: Row) -> str:
    """First and last evaluation; the summary's figures, where there is one, are the run's own word."""
    evals = [row for row in rows if row.get("kind") == "eval"]
    before = dict(evals[0]) if evals else {}
    after = dict(evals[-1]) if len(evals) > 1 else {}
    for name in ("pass1", "maj"):
        before[name] = summary.get(f"{name}_start", before.get(name))
        after[name] = summary.get(f"{name}_end", after.get(name))
    names = {
        "pass1": "pass@1",
        "maj": "majority vote",
        "gap": "majority minus pass@1",
        "vote_share": "vote share",
    }
    names |= {name: name for name in before if name.startswith("pass@")}
    names["completion_tokens"] = "tokens per completion"
    body = [
        (
            label,
            _score(before, name),
            _score(after, name),
            _change(before.get(name), after.get(name), name),
        )
        for name, label in names.items()
        if before.get(name) is not None or after.get(name) is not None
    ]
    if not body:
        return "<p>no evaluations</p>"
    steps = [f" (step {row['step']})" if "step" in row else "" for row in (before, after)]
    return _table(
        ("held-out", "before" + steps[0], "after" + steps[1], "change"), body, "scores"
    ) + _calibration(before, after)


def _calibration(before: Row, after: Row) -> str:
    """How far the vote's share tells whether its answer is right, and of how many prompts."""
    bars = [name.removeprefix("coverage@") for name in before if name.startswith("coverage@")]
    body = [
        (
            f"at least {bar}",
            *(
                f"{_score(row, 'maj@' + bar)} of {_score(row, 'coverage@' + bar)}"
                for row in (before, after)
            ),
        )
        for bar in bars
    ]
    lead = "<p>Vote share as confidence: how often the majority is right, of the prompts on which it has that share.</p>"
    return lead + _table(("vote share", "before", "after"), body, "scores") if body else ""


def _score(row: Row, name: str) -> str:
    if row.get(name) is None:
        return "-"
    if name == "completion_tokens":
        return f"{row[name]:.1f}"
    error = (
        f" ± {100 * row['pass1_se']:.1f}"
        if name == "pass1" and row.get("pass1_se") is not None
        else ""
    )
    return f"{100 * row[name]:.1f}{error} %"


def _change(before: float | None, after: float | None, name: str) -> str:
    if before is None or after is None:
        return "-"
    return (
        f"{after - before:+.1f}"
        if name == "completion_tokens"
        else f"{100 * (after - before):+.1f} points"
    )


def _step_time(rows: list[Row]) -> str:
    """Medians over the steps after the first, which warms up. What an older run did not time is in the rest."""
    timed = [row for row in rows if row.get("kind") == "train" and row.get("seconds")][1:]
    if not timed:
        return "<p>no timed steps after the first</p>"
    parts = {part: [row.get(name, 0.0) for row in timed] for part, name in STEP_PARTS.items()}
    parts["the rest"] = [
        row["seconds"] - sum(known) for row, *known in zip(timed, *parts.values(), strict=True)
    ]
    bar = bar_svg({part: statistics.median(values) for part, values in parts.items()})
    seconds, speed = (
        statistics.median(row[name] for row in timed) for name in ("seconds", "tokens_per_second")
    )
    words = (
        f"Median of the steps after the first: {seconds:.2f} s a step, {speed:,.0f} tokens per second. Syncing waits for "
        "rollouts under way, gives the sampler the new weights and checks them. Evaluations and checkpoints are not counted."
    )
    return f'<div class="bar">{bar}</div><p>{words}</p>'


def _events(rows: list[Row], limit: int = 50) -> str:
    """How often what happened, and the last `limit` events in full."""
    truncated = [
        row["truncated"]
        for row in rows
        if row.get("kind") == "train" and row.get("truncated") is not None
    ]
    lead = (
        f"<p>{100 * statistics.fmean(truncated):.1f} % of training completions were cut at the limit.</p>"
        if truncated
        else ""
    )
    events = [row for row in rows if row.get("kind") == "event"]
    if not events:
        return lead + "<p>no events</p>"
    counts = Counter(str(row.get("event", "event")) for row in events)
    body = []
    for row in events[-limit:]:
        rest = {
            name: value
            for name, value in row.items()
            if name not in ("step", "kind", "time", "event", "message")
        }
        text = " ".join(
            str(part) for part in (row.get("message", ""), json.dumps(rest) if rest else "") if part
        )
        body.append((row["step"], row.get("event", "event"), text))
    lead += (
        "<p>"
        + escape(", ".join(f"{name}: {count}" for name, count in counts.most_common()))
        + "</p>"
    )
    return lead + _table(("step", "event", "what"), body, "left")


def _audit(rows: list[Row], limit: int = 20) -> str:
    """The totals, and the last `limit` pairs on which vote and math-verify disagree."""
    from srt_fast.rewards.audit import (  # brings torch, which a report without an audit should not wait for
        sentence,
        totals,
    )

    examples = [(row["step"], *example) for row in rows for example in row.get("examples", [])][
        -limit:
    ]
    table = (
        _table(("step", "what", "majority", "other answer"), examples, "left") if examples else ""
    )
    return f"<p>{escape(sentence(totals(rows)))}</p>{table}"


def _samples(samples: list[Row]) -> str:
    if not samples:
        return "<p>no samples</p>"
    steps = [row["step"] for row in samples]
    parts = []
    for step in sorted({min(steps), max(steps)}):
        parts.append(f"<h3>Step {step}</h3>")
        chosen = [row for row in samples if row["step"] == step]
        for prompt, group in itertools.groupby(chosen, key=lambda row: row.get("prompt", "")):
            completions = "".join(_completion(row) for row in group)
            parts.append(f'<div class="prompt"><pre>{escape(str(prompt))}</pre>{completions}</div>')
    return "".join(parts)


def _completion(row: Row) -> str:
    majority = {True: "majority", False: "minority"}.get(row.get("majority"), "no vote")
    truth = {True: "correct", False: "wrong"}.get(row.get("correct"), "no gold")
    answer = "no answer" if row.get("answer") is None else f"answer {row['answer']}"
    badges = "".join(
        f'<span class="badge {text.split()[0]}">{text}</span>' for text in (majority, truth)
    )
    text = escape(str(row.get("completion", "")))
    return f'<div class="completion">{badges}<b>{escape(answer)}</b><pre>{text}</pre></div>'


def _hyperparameters(config: Row) -> str:
    if not config:
        return "<p>no config.json</p>"
    sections = {name: value for name, value in config.items() if isinstance(value, dict)}
    top = {name: value for name, value in config.items() if name not in sections}
    return "".join(
        f"<details open><summary>{escape(name)}</summary>"
        + _table(
            (),
            [(key, json.dumps(value, ensure_ascii=False)) for key, value in fields.items()],
            "left",
        )
        + "</details>"
        for name, fields in ({"run": top} | sections).items()
    )


def _table(head: Iterable[Any], body: Iterable[Iterable[Any]], style: str) -> str:
    def line(tag: str, cells: Iterable[Any]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f'<table class="{style}">{line("th", head)}{"".join(line("td", cells) for cells in body)}</table>'


_CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 76rem; }
body { overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); }
td, th { text-align: left; vertical-align: top; font-variant-numeric: tabular-nums; } tr:empty { display: none; }
.scores td + td, .scores th + th { text-align: right; } .scores tr:nth-child(2) { font-weight: bold; }
section { overflow-x: auto; } .left td:last-child { overflow-wrap: anywhere; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
.curves svg, .bar svg { width: 100%; height: auto; } .bar { max-width: 36rem; }
pre { margin: 0; white-space: pre-wrap; max-height: 14rem; overflow: auto; unicode-bidi: isolate; font-size: .875rem; }
.prompt { border: 1px solid var(--line); border-radius: .5rem; margin: .75rem 0; overflow: hidden; }
.prompt > pre { background: var(--soft); padding: .5rem .75rem; font-weight: bold; }
.completion { padding: .5rem .75rem; border-top: 1px solid var(--line); }
.badge { display: inline-block; border: 1px solid; border-radius: 1rem; padding: 0 .6rem; margin-right: .5rem; }
.badge { font-size: .8rem; } .majority { color: #3b82c4; } .correct { color: #2a9d74; } .wrong { color: #d1603d; }
@media (max-width: 30rem) { table { font-size: .875rem; } td, th { padding-right: .5rem; } }
summary { font-weight: bold; cursor: pointer; margin-top: .5rem; }
"""
_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1><p>{lead}</p>{body}</body></html>
"""
