"""How the keys of a system treat sets of gold answers: kept, merged and split.

Three questions are asked of each set.

- Stability: of a gold and a trivial respelling, how often is the key one?
- False merges: which two golds have one key, and what makes them one answer?
- Splits: a value has the golds that are one number, and what a model writes for them if math-verify
  calls it equal to the gold. The value splits if these texts have several keys.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from voter.corpus import Pair, same_key_pairs
from voter.golds.reasons import ON_PURPOSE, cause_of_split, reason_for_one_key
from voter.golds.respellings import model_spellings, trivial_respellings
from voter.golds.sets import GoldSet
from voter.pair_verdicts import equal_pairs
from voter.values import value_of

KeyFunction = Callable[[str], Any]
Families = dict[str, dict[str, str]]
"""The gold -> what a model writes for it -> the name of what was done."""


def evaluate_sets(
    sets: list[GoldSet], key: KeyFunction, seed: int, processes: int
) -> list[dict[str, Any]]:
    """The figures of each set. math-verify compares the golds of a set with one key, and each gold
    with its spellings.
    """
    families: list[Families] = [
        {gold: model_spellings(gold, a_set.is_maths, seed) for gold in a_set.golds}
        for a_set in sets
    ]
    pairs = [pair for a_set in sets for pair in _same_key_golds(a_set.golds, key)]
    pairs += [
        (gold, text) for of_set in families for gold, texts in of_set.items() for text in texts
    ]
    print(f"{len(sets)} sets, {len(pairs)} pairs", file=sys.stderr, flush=True)
    equal, failures = equal_pairs(list(dict.fromkeys(pairs)), processes)
    print(f"{failures} pairs of sets without a verdict", file=sys.stderr, flush=True)
    return [
        {
            "set": a_set.name,
            "from": a_set.parts,
            "golds": len(a_set.golds),
            "stability": stability(a_set.golds, key),
            "merges": merges(a_set.golds, key, equal),
            "splits": splits(a_set.golds, of_set, key, equal),
        }
        for a_set, of_set in zip(sets, families, strict=True)
    ]


def _same_key_golds(golds: list[str], key: KeyFunction) -> Iterator[Pair]:
    return same_key_pairs(golds, {gold: key(gold) for gold in golds})


def stability(golds: list[str], key: KeyFunction) -> dict[str, Any]:
    """changed: the name of the respelling, the gold, the respelled text."""
    respelled = [
        (name, gold, text) for gold in golds for name, text in trivial_respellings(gold).items()
    ]
    changed = [row for row in respelled if not key(row[1]) or key(row[2]) != key(row[1])]
    return {"respelled": len(respelled), "changed": changed}


def merges(golds: list[str], key: KeyFunction, equal: set[Pair]) -> dict[str, Any]:
    """Pairs of golds with one key: by the reason that makes them one answer, or not explained."""
    explained: dict[str, list[Pair]] = defaultdict(list)
    unexplained = []
    for pair in _same_key_golds(golds, key):
        reason = reason_for_one_key(*pair, verdict=pair in equal)
        if reason:
            explained[reason].append(pair)
        else:
            unexplained.append(pair)
    return {"explained": explained, "not explained": unexplained}


def splits(
    golds: list[str], families: Families, key: KeyFunction, equal: set[Pair]
) -> dict[str, Any]:
    """The values with several spellings, and how many of them have several keys.

    causes: what was done -> a pair of a gold and a text with another key, for each value that
    splits by it.
    """
    values: dict[Any, list[str]] = defaultdict(list)
    for gold in golds:
        value = value_of(gold)
        values[gold if value is None else value].append(gold)
    several = split = split_by_fault = 0
    causes: dict[str, list[Pair]] = defaultdict(list)
    for same in values.values():
        texts = _texts_of_value(same, families, equal)
        apart = [text for text in texts if key(text) != key(same[0])]
        first = {cause_of_split(same[0], texts[text]): text for text in reversed(apart)}
        for cause, text in first.items():
            causes[cause].append((same[0], text))
        several += bool(texts)
        split += bool(first)
        split_by_fault += not first.keys() <= ON_PURPOSE.keys()
    return {
        "values": several,
        "split": split,
        "split, not on purpose": split_by_fault,
        "causes": dict(sorted(causes.items(), key=lambda item: -len(item[1]))),
    }


def _texts_of_value(same: list[str], families: Families, equal: set[Pair]) -> dict[str, str]:
    """The texts beside the first of golds that are one number -> the name of what was done."""
    golds = dict.fromkeys(same[1:], "another gold")
    return golds | {
        text: change
        for gold in same
        for text, change in families[gold].items()
        if (gold, text) in equal and text not in same
    }
