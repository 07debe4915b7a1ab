"""What math-verify's verdicts say about the keys of a system."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

from voter.corpus import NEAR, Corpus, Keys, Pair
from voter.exceptions import ACCEPTED, APART, BOTH_EQUAL_GOLD, GOLDS_APART, MERGED
from voter.values import value_of


class Home(NamedTuple):
    """A gold answer that a text belongs to, and what was done to the gold."""

    gold: str
    change: str


def _reason_apart(gold: str, other: str) -> str | None:
    return GOLDS_APART.get((gold, other)) or GOLDS_APART.get((other, gold))


class Verdicts:
    """math-verify's verdicts on the pairs, and what they say about a system's keys.

    pairs: every pair that was compared, with its origin. equal: those with the verdict "equal".
    """

    def __init__(self, corpus: Corpus, pairs: dict[Pair, str], equal: set[Pair]):
        self.pairs = pairs
        self.equal = equal
        self._golds = set(corpus.golds)
        self.homes: dict[str, list[Home]] = defaultdict(list)
        for gold, family in corpus.families.items():
            for text, change in family.items():
                self.homes[text].append(Home(gold, change))
                # A near miss that is a number is its own gold too.
                if change.startswith(NEAR) and value_of(text) is not None:
                    self.homes[text].append(Home(text, "number"))

    def is_equal(self, a: str, b: str) -> bool:
        return a == b or (a, b) in self.equal or (b, a) in self.equal

    def is_one_answer(self, gold: str, other: str) -> bool:
        """Whether two golds are one answer: as numbers, or else by the verdict."""
        if gold == other:
            return True
        value = value_of(gold)
        other_value = value_of(other)
        if value is not None and other_value is not None:
            return value == other_value
        are_golds = {gold, other} <= self._golds
        return are_golds and self.is_equal(gold, other) and not _reason_apart(gold, other)

    def homes_of_one_answer(self, a: str, b: str) -> tuple[Home, Home] | None:
        """A home of each text whose golds are one answer: those with the shortest changes.

        None if there are none. A near miss is not at home at its gold.
        """
        homes = [
            (home, other)
            for home in self.homes[a]
            for other in self.homes[b]
            if not home.change.startswith(NEAR)
            and not other.change.startswith(NEAR)
            and self.is_one_answer(home.gold, other.gold)
        ]
        return min(homes, key=lambda pair: len(pair[0].change + pair[1].change), default=None)

    def accepted(self, a: str, b: str) -> str | None:
        """Which of ACCEPTED explains a pair of two values with the verdict "equal".

        None if the pair should have one key.
        """
        if self.homes_of_one_answer(a, b):
            return None
        for home in self.homes[a]:
            for other in self.homes[b]:
                reason = self._reason_accepted(home, other)
                if reason:
                    return reason
        return None

    def _reason_accepted(self, home: Home, other: Home) -> str | None:
        changes = [
            change.removeprefix(NEAR)
            for change in (home.change, other.change)
            if change.startswith(NEAR)
        ]
        if changes and home.gold == other.gold or self.is_one_answer(home.gold, other.gold):
            return next((change for change in changes if change in ACCEPTED), None)
        return _reason_apart(home.gold, other.gold) or (None if changes else APART)

    def merged(self, a: str, b: str) -> str | None:
        """Which of MERGED explains a pair with one key and the verdict "different"; None: none."""
        homes = self.homes_of_one_answer(a, b)
        if not homes:
            return None
        unread = [
            home.change
            for text, home in zip((a, b), homes, strict=True)
            if not self.is_equal(home.gold, text)
        ]
        if not unread:
            return BOTH_EQUAL_GOLD
        reasons = [
            next((part for part in change.split(" + ") if part in MERGED), None)
            for change in unread
        ]
        return None if None in reasons else reasons[0]

    def has_one_key(self, keys: Keys, a: str, b: str) -> bool:
        return keys[a] == keys[b] and keys[a] not in (0, None)

    def splits(self, keys: Keys) -> tuple[Counter[tuple[str, str]], list[Pair]]:
        """Counts by (origin, "equal" or "one key"), and the equal pairs with two keys."""
        counts: Counter[tuple[str, str]] = Counter()
        splits = []
        for pair in self.equal:
            if self.accepted(*pair) is not None:
                continue
            has_one_key = self.has_one_key(keys, *pair)
            counts[self.pairs[pair], "equal"] += 1
            counts[self.pairs[pair], "one key"] += has_one_key
            if not has_one_key:
                splits.append(pair)
        return counts, sorted(splits)

    def false_merges(self, keys: Keys) -> list[Pair]:
        """The pairs with one key and the verdict "different"."""
        return sorted(
            pair for pair in self.pairs if pair not in self.equal and self.has_one_key(keys, *pair)
        )
