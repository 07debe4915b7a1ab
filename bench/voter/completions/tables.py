"""The figures of cases and completions as tables."""

from __future__ import annotations

from collections import Counter
from typing import Any

from report import Table
from voter.completions.readings import FALSE, MISSED, NO_ANSWER, RIGHT, WRONG
from voter.quality_report import percent


def case_table(cases: list[dict[str, Any]]) -> Table:
    """cases: none if their file is not there."""
    lines = [] if cases else [["skipped: the file is not there", "", "", ""]]
    for rule in dict.fromkeys(case["rule"] for case in cases):
        of_rule = [case for case in cases if case["rule"] == rule]
        failing = [case["case"] for case in of_rule if not case["passes"]]
        passing = len(of_rule) - len(failing)
        lines.append([rule, str(len(of_rule)), str(passing), "; ".join(failing)])
    return "Cases re-made from public bug reports", ["rule", "cases", "pass", "which fail"], lines


def reading_table(figures: list[dict[str, Any]]) -> Table:
    columns = [
        "rule",
        "completions",
        "number",
        "read as by a careful reader",
        RIGHT,
        WRONG,
        MISSED,
        "without an answer",
        FALSE,
    ]
    lines = [
        [of_rule["rule"], style, *_reading_cells(Counter(counts))]
        for of_rule in figures
        for style, counts in sorted(of_rule["styles"].items())
    ]
    return "Completions read by each rule", columns, lines


def _reading_cells(counts: Counter[str]) -> list[str]:
    without = counts[FALSE] + counts[NO_ANSWER]
    return [
        str(counts.total()),
        percent(counts[RIGHT] + counts[NO_ANSWER], counts.total()),
        *(str(counts[name]) for name in (RIGHT, WRONG, MISSED)),
        str(without),
        str(counts[FALSE]),
    ]
