"""Why two golds may have one key, and why a text may have another key than its gold."""

from __future__ import annotations

from voter.values import value_of

LARGEST = 10**18  # of a canonical numerator or denominator
LARGE = "10^18"

ON_PURPOSE = {
    LARGE: "a numerator or denominator of 10^18 or more keeps its text",
    "sum reordered": "algebra",
    "product reordered": "algebra",
    "root multiplied out": "algebra",
    "unreduced root": "algebra",
    "\\pm written out": "algebra",
    "(1/d)x of \\frac{x}{d}": "algebra",
    "(n/d)x of \\frac{nx}{d}": "algebra",
    "inequality": "algebra",
    "list reordered": "the order in a list may be the answer",
    "list in brackets": "`(-2,1)` is a point",
}
"""The name of a change that docs/answers.md leaves apart on purpose -> the reason."""

NUMBER = "one number, units aside"
VERDICT = "math-verify calls them equal"
CASE = "a word in other case"
BY_RULE = {
    frozenset(("2", "2 inequalities")): "a word after a number is a unit",
    frozenset(("x=y=0", "f(x)=0")): "names before `=` go",
}
"""Golds of two questions that a rule of docs/answers.md joins, with the rule."""


def reason_for_one_key(gold: str, other: str, verdict: bool) -> str | None:
    """What makes two golds one answer; None if nothing does. verdict: math-verify's."""
    value = value_of(gold)
    if value is not None and value == value_of(other):
        return NUMBER
    if verdict:
        return VERDICT
    if gold.casefold() == other.casefold():
        return CASE
    return BY_RULE.get(frozenset((gold, other)))


def cause_of_split(gold: str, change: str) -> str:
    """What splits a text from its gold. change: what was done to it."""
    value = value_of(gold)
    if value is not None and max(abs(value.numerator), value.denominator) >= LARGEST:
        return LARGE
    return change.split(" + ")[0]
