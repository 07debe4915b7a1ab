"""Which pairs of texts are judged, and what the verdicts make of a system's keys, exceptions with their reasons."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from near_misses import near_misses
from spellings import spellings, value_of

# Why a pair with one key that is judged different is no false merge: both are spellings of golds that are one or judged
# equal, and this was done to the text that is judged different from its gold.
BOTH = "both are judged equal to the gold answer"
MERGED = {
    BOTH: "and not to each other, as `x = 11` and `n = 11`: keys cannot follow a judge that is not transitive",
    "full stop": "a full stop after the answer: the judge reads some, `5.` among them, and not others",
    "$ $ and full stop": "a full stop after the answer",
    "full stop inside \\text": "a full stop after the answer",
    "choice": "a full stop after the letter, or the brackets around it outside of `\\text`",
    "\\( \\)": "the judge does not read `\\( \\)` around units and thousands",
    "braces": "the judge reads braces around an answer as a set",
    "\\mathbf of a number": "the judge reads a decimal in `\\mathbf` as a name",
    "\\text of a number": "the judge reads a decimal in `\\text` as a name",
    "percent": "`\\%` is a unit here, as in MATH's answers; the judge agrees on 7\\%, not on 0.5\\%",
    "thousands \\,": "`2\\,220`: the judge multiplies 2 by 220",
    "thousands space": "`2 220`: the judge multiplies 2 by 220",
    "mixed a b/c": "`5 1/2`: the judge multiplies 5 by 1/2",
    "n =": "the judge tells `n=5` from the gold answer `x=5`, and `5` from neither",
    "f(x) =": "the judge tells `f(x)=2x` from the gold answer `y=2x`, and `2x` from neither",
    "n.0 in a list": "the judge does not compare decimals in `x \\in [-2.0,7.0]`",
    "scientific": "`10^-5` without braces: the judge reads `10^-`",
    "case of a word": "a word in capitals outside of `\\text`: the judge multiplies its letters, and E is a number",
    "\\boxed": "the judge does not read a unit or a full stop inside of a second box",
    "\\bigl \\bigr": "the judge does not read `\\bigl(`",
    "e notation": "`8e3`: the judge multiplies by the letter e",
    "(digits)_base": "`(52)_8`: the judge does not read a base after brackets",
    "\\cdot": "the judge reads `9 \\cdot i` as no imaginary number",
    "*": "the judge reads `9*i` as no imaginary number",
}
# Why a pair that is judged equal is none: one of the texts was made to be another value, by this; or a reason of its own.
APART = "spellings of golds that are judged different"
ACCEPTED = {
    APART: "the judge reads a part of them, as the `{` of `{\\text{113}}`",
    "million": "the judge takes any word after a number for a unit",
    "base": "the judge drops an index",
    "another base": "the judge drops an index",
    "base left out": "the judge drops an index",
    "index": "the judge drops an index",
    "case of a letter": "the judge ignores the case of letters",
    "a digit more": "the judge compares decimals at six places",
    "decimal point moved": "the judge compares decimals at six places",
    "denominator off by one": "the judge compares decimals at six places",
    "rounded": "the judge compares decimals at six places",
    "list": "the judge reads `5, 5` as the set of 5, and `\\(1{,}440\\)` as a list",
    "part of a tuple": "the judge reads `\\(1{,}440\\)` as a list",
    "digits apart": "the judge multiplies numbers that stand apart, also those of `1 250`",
    "another number after it": "the judge multiplies numbers that stand apart",
    "times a letter": "0x is 0",
    "power": "the judge reads `1\\,600.` as 1, which is 160^0",
    "sign": "the judge reads a part of `(2,3).` or `{x=5}`, or the right-hand side of `-y = 2x + 3`",
    "inner sign": "the judge reads a part of an equation with a full stop",
    "\\pi left out": "the judge reads `12\\pi.` as 12",
    "another bracket": "the judge drops the bracket beside an infinity",
    "another closing bracket": "the judge drops the bracket beside an infinity",
    "point and list": "the judge takes a point or an interval for a list of solutions in any order",
    "equation": "the judge compares a number with an equation's right-hand side",
}
GOLDS_APART = {  # golds of two questions that are judged equal, with their reason of ACCEPTED
    ("204", "204_5"): "base left out",
    ("40", "40_9"): "base left out",
    ("(-2,1)", "-2,1"): "point and list",
    ("(-2,1)", "1,-2"): "point and list",
    ("0", "5x - 7y + 11z + 4 = 0"): "equation",
    ("0.0", "5x - 7y + 11z + 4 = 0"): "equation",
}
ORIGINS = (
    "two golds",
    "gold and a spelling of it",
    "two spellings of a gold",
    "spelling and near miss",
    "across families",
)
NEAR = "other: "  # before the name of a near miss


@dataclass(frozen=True)
class Corpus:
    """The gold answers, and the family of each: every text with what was done to it, "gold", or NEAR and a near miss's name."""

    golds: list[str]
    families: dict[str, dict[str, str]]

    @property
    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for family in self.families.values() for text in family))


def read_rows(data: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (data / name).read_text(encoding="utf-8").splitlines()]


def make_corpus(golds: Iterable[str], seed: int) -> Corpus:
    families = {}
    for gold in dict.fromkeys(golds):
        near = {text: NEAR + name for text, name in near_misses(gold).items()}
        families[gold] = near | spellings(gold, random.Random(f"{seed} {gold}")) | {gold: "gold"}
    return Corpus(list(families), families)


def same_key_pairs(texts: list[str], keys: dict[str, Any]) -> Iterator[tuple[str, str]]:
    groups = defaultdict(list)
    for text in texts:
        groups[keys[text]].append(text)
    for key, group in groups.items():
        if key not in (0, None):  # no answer is no vote
            yield from combinations(group, 2)


def all_pairs(corpus: Corpus, systems: dict[str, dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Every pair that is to be judged, with where it comes from. A pair is in the order of the corpus's texts."""
    place = {text: i for i, text in enumerate(corpus.texts)}
    found: dict[tuple[str, str], str] = {}

    def add(pairs: Iterable[tuple[str, str]], origin: str) -> None:
        for a, b in pairs:
            found.setdefault((a, b) if place[a] < place[b] else (b, a), origin)

    for gold, family in corpus.families.items():
        spelled = [text for text, name in family.items() if not name.startswith(NEAR)]
        near = [text for text in family if family[text].startswith(NEAR)]
        add(((gold, text) for text in spelled if text != gold), "gold and a spelling of it")
        add(combinations(spelled, 2), "two spellings of a gold")
        add(((text, other) for text in spelled for other in near), "spelling and near miss")
    add(combinations(corpus.golds, 2), "two golds")
    for keys in systems.values():
        add(same_key_pairs(corpus.texts, keys), "across families")
    return dict(sorted(found.items(), key=lambda item: (place[item[0][0]], place[item[0][1]])))


def _apart(gold: str, other: str) -> str | None:
    return GOLDS_APART.get((gold, other)) or GOLDS_APART.get((other, gold))


class Verdicts:
    """What the judge said of the pairs, and what that makes of a system's keys."""

    def __init__(
        self, corpus: Corpus, pairs: dict[tuple[str, str], str], equal: set[tuple[str, str]]
    ):
        self.pairs, self.equal, self.golds = pairs, equal, set(corpus.golds)
        self.homes = defaultdict(
            list
        )  # of each text: (gold, what was done); a near miss that is a number is its own gold too
        for gold, family in corpus.families.items():
            for text, name in family.items():
                self.homes[text].append((gold, name))
                if name.startswith(NEAR) and value_of(text) is not None:
                    self.homes[text].append((text, "number"))

    def judged_equal(self, a: str, b: str) -> bool:
        return a == b or (a, b) in self.equal or (b, a) in self.equal

    def same_value(self, gold: str, other: str) -> bool:
        """Whether two golds are one answer: as numbers, or else as judged."""
        if None not in (value_of(gold), value_of(other)):
            return value_of(gold) == value_of(other)
        return (
            gold == other
            or {gold, other} <= self.golds
            and self.judged_equal(gold, other)
            and not _apart(gold, other)
        )

    def common(self, a: str, b: str) -> tuple[tuple[str, str], tuple[str, str]] | None:
        """For each text a gold and what was done to it, where the golds are one answer; the plainest of them."""
        found = [
            (home, other)
            for home in self.homes[a]
            for other in self.homes[b]
            if self.same_value(home[0], other[0])
            and not home[1].startswith(NEAR)
            and not other[1].startswith(NEAR)
        ]
        return min(found, key=lambda pair: len(pair[0][1]) + len(pair[1][1]), default=None)

    def accepted(self, a: str, b: str) -> str | None:
        """Which of ACCEPTED explains a pair of two values that is judged equal; None where it should have one key."""
        if self.common(a, b):
            return None
        for gold, name in self.homes[a]:
            for other, other_name in self.homes[b]:
                near = [
                    one.removeprefix(NEAR) for one in (name, other_name) if one.startswith(NEAR)
                ]
                if near and gold == other or self.same_value(gold, other):
                    reason = next((one for one in near if one in ACCEPTED), None)
                else:
                    reason = _apart(gold, other) or (None if near else APART)
                if reason:
                    return reason
        return None

    def merged(self, a: str, b: str) -> str | None:
        """Which of MERGED explains a pair with one key that is judged different; None where none does."""
        found = self.common(a, b)
        if not found:
            return None
        unread = [
            name
            for text, (gold, name) in zip((a, b), found, strict=True)
            if not self.judged_equal(gold, text)
        ]
        reasons = [
            next((part for part in name.split(" + ") if part in MERGED), None) for name in unread
        ]
        return None if None in reasons else (reasons or [BOTH])[0]

    def one_key(self, keys: dict[str, Any], a: str, b: str) -> bool:
        return keys[a] == keys[b] and keys[a] not in (0, None)

    def split(self, keys: dict[str, Any]) -> tuple[Counter, list[tuple[str, str]]]:
        """By origin, how many pairs are judged equal and how many of them have one key; those that have two."""
        counts, found = Counter(), []
        for pair in self.equal:
            if self.accepted(*pair) is None:
                one = self.one_key(keys, *pair)
                counts[self.pairs[pair], "equal"] += 1
                counts[self.pairs[pair], "one key"] += one
                if not one:
                    found.append(pair)
        return counts, sorted(found)

    def false_merges(self, keys: dict[str, Any]) -> list[tuple[str, str]]:
        return sorted(
            pair for pair in self.pairs if pair not in self.equal and self.one_key(keys, *pair)
        )
