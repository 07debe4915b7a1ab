"""What was measured as numbers for JSON, as tables, and against the bars that the project set itself."""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

CPU_TIMES = 4.0  # times faster than TRL and Liger
FLAT = 1.15  # dearest over cheapest token of the scaling
GPU_PACKED, GPU_PADDED, GPU_WORKSPACE = 1.25, 2.0, 3 << 30
GPU_SHARE = {(4096, 128256): 0.85, (1536, 151936): 0.75}  # of the three bare GEMMs, by (H, V)
LIGER = ("liger_grpo", "liger_scaled_ce", "liger_ce_tokens")


def _row(row, active: int) -> dict[str, Any]:
    median = statistics.median(row.seconds) if row.seconds else None
    peak = max((peak for peak in row.peaks if peak is not None), default=None)
    return {
        "provider": row.provider.name,
        "layout": row.provider.layout,
        "objective": row.provider.objective,
        "status": row.status,
        "reason": row.reason,
        "seconds": median,
        "seconds_each": [round(seconds, 6) for seconds in row.seconds],
        "us_per_active_token": median and median / active * 1e6,
        "peak_bytes": peak,
        "workspace_bytes": None if peak is None else peak - row.returned,
        "errors": {
            name: e if e is not None and math.isfinite(e) else None
            for name, e in row.errors.items()
        },
    }


def summary(case, active: int, chunk_bytes: int, rows: list) -> dict[str, Any]:
    """A case's figures. Ratios are left out unless ours was right; shares unless the GEMMs were timed."""
    found = {
        "name": case.name,
        "hidden_size": case.hidden_size,
        "vocab_size": case.vocab_size,
        "dtype": str(case.dtype).removeprefix("torch."),
        "tokens": sum(case.lengths),
        "active_tokens": active,
        "rollouts": len(case.lengths),
        "padded_tokens": len(case.lengths) * max(case.lengths),
        "chunk_bytes": chunk_bytes,
        "rows": [_row(row, active) for row in rows],
    }
    ours, gemms = (cell(found, name, "seconds") for name in ("ours", "gemms"))
    for row in found["rows"]:
        row["times_ours"] = row["seconds"] / ours if ours and row["seconds"] else None
        row["share_of_gemms"] = gemms / row["seconds"] if gemms and row["seconds"] else None
    return found


def cell(case: dict, provider: str, key: str) -> Any:
    """A figure of a provider in a case; None where it has none."""
    return next(
        (
            row.get(key)
            for row in case["rows"]
            if row["provider"] == provider and row["status"] == "ok"
        ),
        None,
    )


def title(case: dict) -> str:
    size = f"{case['tokens']} tokens, {case['active_tokens']} active"
    size += f", {case['padded_tokens']} padded" if case["padded_tokens"] > case["tokens"] else ""
    return (
        f"{case['name']}: H {case['hidden_size']}, V {case['vocab_size']}, {case['dtype']}, {size}"
    )


def _format(value: float | None, pattern: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, pattern)


def case_table(case: dict) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns, rows. Memory in MiB, errors of log-probs in nats, of gradients relative."""
    columns = [
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
    lines = []
    for row in case["rows"]:
        errors = row["errors"]
        note = (
            "cross-entropy only: a bound"
            if row["objective"] == "ce" and row["status"] == "ok"
            else row["reason"]
        )
        lines.append(
            [
                row["provider"],
                _format(row["seconds"], ".1f", 1e3),
                _format(row["us_per_active_token"], ".2f"),
                _format(row["times_ours"], ".2f"),
                _format(row["share_of_gemms"], ".2f"),
                *(_format(row[key], ".0f", 2**-20) for key in ("peak_bytes", "workspace_bytes")),
                *(
                    _format(errors.get(key), ".1e")
                    for key in ("logprob_rms", "logprob_max", "dhidden", "dweight")
                ),
                note if row["status"] == "ok" else f"{row['status']}: {note}",
            ]
        )
    return title(case), columns, lines


def _bar(
    case: dict, text: str, got: float | None, goal: float, *, at_least: bool
) -> dict[str, Any]:
    holds = None if got is None else (got >= goal if at_least else got <= goal)
    return {
        "case": title(case),
        "bar": text,
        "got": got,
        "goal": goal,
        "at_least": at_least,
        "holds": holds,
    }


def _faster(case: dict, peers: tuple[str, ...], goal: float) -> dict[str, Any]:
    """Against the fastest of some providers."""
    times = [times for peer in peers if (times := cell(case, peer, "times_ours")) is not None]
    return _bar(
        case, f"times faster than {', '.join(peers)}", min(times, default=None), goal, at_least=True
    )


def _case_bars(case: dict, device: str) -> list[dict[str, Any]]:
    if device == "cpu":
        if case["name"] != "padded":
            return []
        peak, dw = cell(case, "ours", "peak_bytes"), 4 * case["hidden_size"] * case["vocab_size"]
        found = [_faster(case, (peer,), CPU_TIMES) for peer in ("trl_padded", "liger_grpo")]
        bar = _bar(
            case,
            "peak bytes: fp32 dW and two chunks",
            peak,
            dw + 2 * case["chunk_bytes"],
            at_least=False,
        )
        return [*found, bar]
    workspace = cell(case, "ours", "workspace_bytes")
    found = [_bar(case, "workspace bytes", workspace, GPU_WORKSPACE, at_least=False)]
    if case["name"] == "padded":
        return found + [_faster(case, (peer,), GPU_PADDED) for peer in ("trl_padded", "liger_grpo")]
    if case["name"] == "packed":
        found += [_faster(case, peers, GPU_PACKED) for peers in (("trl_packed",), LIGER)]
        goal = GPU_SHARE.get((case["hidden_size"], case["vocab_size"]))
        if goal:
            found.append(
                _bar(
                    case,
                    "share of the bare GEMMs",
                    cell(case, "ours", "share_of_gemms"),
                    goal,
                    at_least=True,
                )
            )
    return found


def bars(cases: list[dict], device: str) -> list[dict[str, Any]]:
    """Every bar of the measured cases. holds is None where a side of it was not measured."""
    found = [bar for case in cases for bar in _case_bars(case, device)]
    heads: dict[tuple, list[dict]] = {}
    for case in cases:
        if case["name"] == "scaling":
            heads.setdefault((case["hidden_size"], case["vocab_size"], case["dtype"]), []).append(
                case
            )
    for group in heads.values():
        costs = [
            cost
            for case in group
            if (cost := cell(case, "ours", "us_per_active_token")) is not None
        ]
        spread = max(costs) / min(costs) if len(costs) == len(group) else None
        sizes = ", ".join(str(case["tokens"]) for case in group)
        found.append(
            _bar(group[-1], f"dearest over cheapest token at {sizes}", spread, FLAT, at_least=False)
        )
    return found


def bar_table(found: list[dict]) -> tuple[str, list[str], list[list[str]]]:
    words = {True: "holds", False: "MISSED", None: "not measured"}
    lines = []
    for bar in found:
        goal = f"{'>=' if bar['at_least'] else '<='} {bar['goal']:.4g}"
        lines.append(
            [bar["case"], bar["bar"], _format(bar["got"], ".4g"), goal, words[bar["holds"]]]
        )
    return "Bars", ["case", "bar", "got", "goal", ""], lines


def markdown(name: str, columns: list[str], lines: list[list[str]]) -> str:
    """An aligned Markdown table under its name."""
    widths = [max(len(line[i]) for line in [columns, *lines]) for i in range(len(columns))]
    rows = [columns, ["-" * width for width in widths], *lines]
    text = "\n".join(
        "| " + " | ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
    return f"**{name}**\n\n{text}\n"


def show(name: str, columns: list[str], lines: list[list[str]]) -> None:
    """With rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(markdown(name, columns, lines), flush=True)
        return
    table = Table(*columns, title=name, title_justify="left")
    for line in lines:
        table.add_row(*line)
    console = Console()
    Console(width=max(console.width, 200)).print(table)


def save(path: Path, document: dict[str, Any], tables: list[tuple], note: str = "") -> None:
    """The JSON document, and beside it in Markdown where it was measured, `note` and the tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    head = ", ".join(
        f"{key} {document['environment'][key]}"
        for key in ("device", "threads", "torch", "commit", "dirty", "date")
    )
    text = [head + "\n", *([note] if note else []), *(markdown(*table) for table in tables)]
    path.with_suffix(".md").write_text("\n".join(text))
    print(f"written: {path}, {path.with_suffix('.md')}", file=sys.stderr)
