"""Gold answers with their spellings and near misses, and the pairs that math-verify compares."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from voter.near_misses import near_misses
from voter.spellings import spellings

Pair = tuple[str, str]
Keys = Mapping[str, Any]
"""The key of each text by a system. 0 and None: no answer."""

GOLD_AND_SPELLING = "gold and a spelling of it"
TWO_GOLDS = "two golds"
TWO_SPELLINGS = "two spellings of a gold"
NEAR_MISS = "spelling and near miss"
ACROSS = "across families"
ORIGINS = (TWO_GOLDS, GOLD_AND_SPELLING, TWO_SPELLINGS, NEAR_MISS, ACROSS)

NEAR = "other: "  # precedes the name of a near miss


@dataclass(frozen=True)
class Corpus:
    """The gold answers, and the family of each.

    A family has every text with what was done to it: "gold", the name of a spelling, or NEAR and
    the name of a near miss.
    """

    golds: list[str]
    families: dict[str, dict[str, str]]

    @property
    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for family in self.families.values() for text in family))


def make_corpus(golds: Iterable[str], seed: int) -> Corpus:
    families = {}
    for gold in dict.fromkeys(golds):
        near = {text: NEAR + name for text, name in near_misses(gold).items()}
        families[gold] = near | spellings(gold, random.Random(f"{seed} {gold}")) | {gold: "gold"}
    return Corpus(list(families), families)


def same_key_pairs(texts: list[str], keys: Keys) -> Iterator[Pair]:
    """Pairs of texts with one key. No answer (0 or None) is no vote."""
    groups = defaultdict(list)
    for text in texts:
        groups[keys[text]].append(text)
    for key, group in groups.items():
        if key not in (0, None):
            yield from combinations(group, 2)


def all_pairs(corpus: Corpus, systems: Mapping[str, Keys]) -> dict[Pair, str]:
    """Every pair to compare, and its origin. A pair is in the order of the corpus's texts.

    systems: name -> the key of each text.
    """
    position = {text: i for i, text in enumerate(corpus.texts)}
    origins: dict[Pair, str] = {}

    def add(pairs: Iterable[Pair], origin: str) -> None:
        for a, b in pairs:
            origins.setdefault((a, b) if position[a] < position[b] else (b, a), origin)

    for gold, family in corpus.families.items():
        near = [text for text in family if family[text].startswith(NEAR)]
        spelled = [text for text in family if not family[text].startswith(NEAR)]
        add(((gold, text) for text in spelled if text != gold), GOLD_AND_SPELLING)
        add(combinations(spelled, 2), TWO_SPELLINGS)
        add(((text, other) for text in spelled for other in near), NEAR_MISS)
    add(combinations(corpus.golds, 2), TWO_GOLDS)
    for keys in systems.values():
        add(same_key_pairs(corpus.texts, keys), ACROSS)
    return dict(sorted(origins.items(), key=lambda item: tuple(position[text] for text in item[0])))
