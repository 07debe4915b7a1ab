"""The figures of sets of gold answers as tables."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from report import Table
from voter.corpus import Pair
from voter.golds.reasons import ON_PURPOSE
from voter.quality_report import percent


def set_table(sets: list[dict[str, Any]]) -> Table:
    columns = [
        "set",
        "golds",
        "trivially respelled",
        "key kept",
        "pairs of golds with one key",
        "not explained",
        "values with several spellings",
        "of them split",
        "of them not on purpose",
    ]
    lines = [[figures["set"], *_set_cells([figures])] for figures in sets]
    return "Sets of gold answers", columns, [*lines, ["all", *_set_cells(sets)]]


def _set_cells(sets: list[dict[str, Any]]) -> list[str]:
    """The sums over sets."""
    golds = sum(figures["golds"] for figures in sets)
    respelled = sum(figures["stability"]["respelled"] for figures in sets)
    changed = sum(len(figures["stability"]["changed"]) for figures in sets)
    unexplained = sum(len(figures["merges"]["not explained"]) for figures in sets)
    explained = sum(
        len(pairs) for figures in sets for pairs in figures["merges"]["explained"].values()
    )
    values, split, by_fault = (
        sum(figures["splits"][name] for figures in sets)
        for name in ("values", "split", "split, not on purpose")
    )
    return [
        str(golds),
        str(respelled),
        percent(respelled - changed, respelled),
        str(explained + unexplained),
        str(unexplained),
        str(values),
        percent(split, values),
        percent(by_fault, values),
    ]


def respelling_table(sets: list[dict[str, Any]]) -> Table:
    changed: dict[str, list[Pair]] = defaultdict(list)
    for figures in sets:
        for name, gold, text in figures["stability"]["changed"]:
            changed[name].append((gold, text))
    return "Trivial respellings that change the key", *_by_name(changed, "respelling", "golds")


def merge_table(sets: list[dict[str, Any]]) -> Table:
    merged: dict[str, list[Pair]] = defaultdict(list)
    for figures in sets:
        for reason, pairs in figures["merges"]["explained"].items():
            merged[reason] += pairs
        merged["not explained"] += figures["merges"]["not explained"]
    return "Golds of a set with one key", *_by_name(merged, "reason", "pairs")


def split_table(sets: list[dict[str, Any]]) -> Table:
    causes: dict[str, list[Pair]] = defaultdict(list)
    for figures in sets:
        for cause, pairs in figures["splits"]["causes"].items():
            causes[cause] += pairs
    columns, lines = _by_name(causes, "cause", "values")
    for line in lines:
        line.insert(2, ON_PURPOSE.get(line[0], ""))
    columns.insert(2, "on purpose")
    return "Values that split, by what was done to the gold", columns, lines


def _by_name(
    pairs_by_name: dict[str, list[Pair]], name: str, count: str
) -> tuple[list[str], list[list[str]]]:
    """The columns and lines of a table, the largest first."""
    ordered = sorted(pairs_by_name.items(), key=lambda item: -len(item[1]))
    lines = [
        [name, str(len(pairs)), ", ".join(f"{a} and {b}" for a, b in pairs[:3])]
        for name, pairs in ordered
        if pairs
    ]
    return [name, count, "for example"], lines
