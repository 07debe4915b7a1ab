"""Measurements as figures for JSON, as tables, and against the project's goals."""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loss import Row
    from steps.batch import Case

CPU_SHARE = 0.7  # of the three bare GEMMs of the machine: other factors depend on its processor
FLATNESS = 1.15  # dearest over cheapest token of the scaling
GPU_PACKED = 1.25  # times faster than peers on packed tokens
GPU_PADDED = 2.0  # times faster than peers on padded tokens
GPU_WORKSPACE = 3 << 30  # bytes
GPU_SHARE = {(4096, 128256): 0.85, (1536, 151936): 0.75}  # of the three bare GEMMs, by (H, V)
LIGER = ("liger_grpo", "liger_scaled_ce", "liger_ce_tokens")
PADDED_PEERS = ("trl_padded", "liger_grpo")
COLUMNS = [
    "provider",
    "ms",
    "us/active token",
    "times ours",
    "share of GEMMs",
    "peak MiB",
    "workspace MiB",
    "logprob rms",
    "logprob max",
    "dX error",
    "dW error",
    "note",
]

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, lines."""


def summary(case: Case, active_tokens: int, chunk_bytes: int, rows: list[Row]) -> dict[str, Any]:
    """A case's figures. Ratios need a right result of ours, and shares timed GEMMs; else None."""
    figures = {
        "name": case.name,
        "hidden_size": case.hidden_size,
        "vocab_size": case.vocab_size,
        "dtype": str(case.dtype).removeprefix("torch."),
        "tokens": sum(case.lengths),
        "active_tokens": active_tokens,
        "rollouts": len(case.lengths),
        "padded_tokens": len(case.lengths) * max(case.lengths),
        "chunk_bytes": chunk_bytes,
        "rows": [_row(row, active_tokens) for row in rows],
    }
    ours = cell(figures, "ours", "seconds")
    gemms = cell(figures, "gemms", "seconds")
    for row in figures["rows"]:
        seconds = row["seconds"]
        row["times_ours"] = seconds / ours if ours and seconds else None
        row["share_of_gemms"] = gemms / seconds if gemms and seconds else None
    return figures


def _row(row: Row, active_tokens: int) -> dict[str, Any]:
    median = statistics.median(row.seconds) if row.seconds else None
    peak = max((peak for peak in row.peaks if peak is not None), default=None)
    errors = {}
    for name, error in row.errors.items():
        errors[name] = error if error is not None and math.isfinite(error) else None
    return {
        "provider": row.provider.name,
        "layout": row.provider.layout,
        "objective": row.provider.objective,
        "status": row.status,
        "reason": row.reason,
        "seconds": median,
        "seconds_per_call": [round(seconds, 6) for seconds in row.seconds],
        "us_per_active_token": median and median / active_tokens * 1e6,
        "peak_bytes": peak,
        "workspace_bytes": None if peak is None else peak - row.result_bytes,
        "errors": errors,
    }


def cell(case: dict, provider: str, key: str) -> Any:
    """A figure of a provider in a case; None if it has none."""
    for row in case["rows"]:
        if row["provider"] == provider and row["status"] == "ok":
            return row.get(key)
    return None


def title(case: dict) -> str:
    text = f"{case['name']}: H {case['hidden_size']}, V {case['vocab_size']}, {case['dtype']}, "
    text += f"{case['tokens']} tokens, {case['active_tokens']} active"
    if case["padded_tokens"] > case["tokens"]:
        text += f", {case['padded_tokens']} padded"
    return text


def _format(value: float | None, pattern: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, pattern)


def case_table(case: dict) -> Table:
    """Memory in MiB, errors of log-probs in nats, errors of gradients relative."""
    return title(case), COLUMNS, [_line(row) for row in case["rows"]]


def _line(row: dict) -> list[str]:
    errors = row["errors"]
    note = row["reason"]
    if row["status"] != "ok":
        note = f"{row['status']}: {note}"
    elif row["objective"] == "ce":
        note = "cross-entropy only: a bound"
    return [
        row["provider"],
        _format(row["seconds"], ".1f", 1e3),
        _format(row["us_per_active_token"], ".2f"),
        _format(row["times_ours"], ".2f"),
        _format(row["share_of_gemms"], ".2f"),
        _format(row["peak_bytes"], ".0f", 2**-20),
        _format(row["workspace_bytes"], ".0f", 2**-20),
        _format(errors.get("logprob_rms"), ".1e"),
        _format(errors.get("logprob_max"), ".1e"),
        _format(errors.get("dhidden"), ".1e"),
        _format(errors.get("dweight"), ".1e"),
        note,
    ]


def _bar(
    case: dict, text: str, got: float | None, goal: float, *, at_least: bool
) -> dict[str, Any]:
    """A goal of a case and whether it holds; None if it was not measured."""
    holds = None
    if got is not None:
        holds = got >= goal if at_least else got <= goal
    return {
        "case": title(case),
        "bar": text,
        "got": got,
        "goal": goal,
        "at_least": at_least,
        "holds": holds,
    }


def _faster(case: dict, peers: tuple[str, ...], goal: float) -> dict[str, Any]:
    """How much faster ours is than the fastest of these providers."""
    times = [cell(case, peer, "times_ours") for peer in peers]
    fastest = min((value for value in times if value is not None), default=None)
    return _bar(case, f"times faster than {', '.join(peers)}", fastest, goal, at_least=True)


def _share(case: dict, goal: float) -> dict[str, Any]:
    """How much of the three bare GEMMs' speed ours reaches."""
    share = cell(case, "ours", "share_of_gemms")
    return _bar(case, "share of the bare GEMMs", share, goal, at_least=True)


def _cpu_bars(case: dict) -> list[dict[str, Any]]:
    if case["name"] != "padded":
        return []
    goal = 4 * case["hidden_size"] * case["vocab_size"] + 2 * case["chunk_bytes"]
    peak = cell(case, "ours", "peak_bytes")
    return [
        _share(case, CPU_SHARE),
        _bar(case, "peak bytes: fp32 dW and two chunks", peak, goal, at_least=False),
    ]


def _gpu_bars(case: dict) -> list[dict[str, Any]]:
    workspace = cell(case, "ours", "workspace_bytes")
    case_bars = [_bar(case, "workspace bytes", workspace, GPU_WORKSPACE, at_least=False)]
    if case["name"] == "padded":
        case_bars += [_faster(case, (peer,), GPU_PADDED) for peer in PADDED_PEERS]
    if case["name"] == "packed":
        case_bars += [_faster(case, peers, GPU_PACKED) for peers in (("trl_packed",), LIGER)]
        goal = GPU_SHARE.get((case["hidden_size"], case["vocab_size"]))
        if goal:
            case_bars.append(_share(case, goal))
    return case_bars


def _flatness_bar(cases: list[dict]) -> dict[str, Any]:
    """How much the cost of a token differs between sizes of one head."""
    costs = [cell(case, "ours", "us_per_active_token") for case in cases]
    spread = None
    if None not in costs:
        spread = max(costs) / min(costs)
    sizes = ", ".join(str(case["tokens"]) for case in cases)
    text = f"dearest over cheapest token at {sizes}"
    return _bar(cases[-1], text, spread, FLATNESS, at_least=False)


def bars(cases: list[dict], device: str) -> list[dict[str, Any]]:
    """Every goal of the measured cases. holds is None if a side of it was not measured."""
    case_bars = _cpu_bars if device == "cpu" else _gpu_bars
    all_bars = [bar for case in cases for bar in case_bars(case)]
    heads: dict[tuple, list[dict]] = {}
    for case in cases:
        if case["name"] == "scaling":
            head = (case["hidden_size"], case["vocab_size"], case["dtype"])
            heads.setdefault(head, []).append(case)
    return all_bars + [_flatness_bar(head_cases) for head_cases in heads.values()]


def bar_table(all_bars: list[dict]) -> Table:
    words = {True: "holds", False: "MISSED", None: "not measured"}
    lines = []
    for bar in all_bars:
        goal = f"{'>=' if bar['at_least'] else '<='} {bar['goal']:.4g}"
        got = _format(bar["got"], ".4g")
        lines.append([bar["case"], bar["bar"], got, goal, words[bar["holds"]]])
    return "Bars", ["case", "bar", "got", "goal", ""], lines


def markdown(name: str, columns: list[str], lines: list[list[str]]) -> str:
    """An aligned Markdown table under its name."""
    widths = [max(len(line[i]) for line in [columns, *lines]) for i in range(len(columns))]
    text = ""
    for line in [columns, ["-" * width for width in widths], *lines]:
        cells = [f"{value:{width}}" for value, width in zip(line, widths, strict=True)]
        text += f"| {' | '.join(cells)} |\n"
    return f"**{name}**\n\n{text}"


def show(name: str, columns: list[str], lines: list[list[str]]) -> None:
    """Print a table; with rich if it is installed."""
    try:
        from rich.console import Console  # optional
        from rich.table import Table as RichTable
    except ImportError:
        print(markdown(name, columns, lines), flush=True)
        return
    table = RichTable(*columns, title=name, title_justify="left")
    for line in lines:
        table.add_row(*line)
    console = Console()
    Console(width=max(console.width, 200)).print(table)


def save(path: Path, document: dict[str, Any], tables: list[Table], note: str = "") -> None:
    """Write the JSON document, and Markdown beside it: the environment, `note`, the tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    keys = ("device", "threads", "torch", "commit", "dirty", "date")
    header = ", ".join(f"{key} {document['environment'][key]}" for key in keys)
    paragraphs = [header + "\n"]
    if note:
        paragraphs.append(note)
    paragraphs += [markdown(*table) for table in tables]
    path.with_suffix(".md").write_text("\n".join(paragraphs))
    print(f"written: {path}, {path.with_suffix('.md')}", file=sys.stderr)
