"""The figures of bench/vote_quality.py: what the verdicts say about a system and about our keys."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from srt_kernels.answers.extract import read_answer
from voter.corpus import GOLD_AND_SPELLING, NEAR, ORIGINS, TWO_GOLDS, Keys, Pair
from voter.exceptions import ACCEPTED, MERGED
from voter.verdicts import Verdicts

KeyFunction = Callable[[str], Any]
COUNTS = ("equal", "one key")
EXAMPLES = 5


def extract_golds(rows: list[dict], key: KeyFunction) -> tuple[int, list[str]]:
    """How many last boxes of solutions have the key of the gold answer; the golds of the others."""
    missed = [
        row["answer"]
        for row in rows
        if key(read_answer(row["solution"], "boxed") or "") != key(row["answer"])
    ]
    return len(rows) - len(missed), missed


def evaluate_system(
    name: str, key: KeyFunction, keys: Keys, verdicts: Verdicts, rows: list[dict]
) -> dict[str, Any]:
    """The figures of a system. rows: problems with solutions."""
    counts, _ = verdicts.splits(keys)
    merges = verdicts.false_merges(keys)
    unexplained = Counter(
        _kind_of_merge(verdicts, pair) for pair in merges if not verdicts.merged(*pair)
    )
    extracted, missed = extract_golds(rows, key)
    by_origin = {origin: {count: counts[origin, count] for count in COUNTS} for origin in ORIGINS}
    totals = {count: sum(counts[origin, count] for origin in ORIGINS) for count in COUNTS}
    return {
        "system": name,
        "solutions": len(rows),
        "extracted": extracted,
        "missed": missed,
        **totals,
        "by origin": by_origin,
        "one key, verdict different": len(merges),
        "not explained": sum(unexplained.values()),
        "not explained, by": dict(unexplained.most_common()),
    }


def _kind_of_merge(verdicts: Verdicts, pair: Pair) -> str:
    """The near miss of a pair with one key, or "spellings"."""
    causes = _cause(verdicts, *pair).split(" and ")
    return next((cause for cause in causes if cause.startswith(NEAR)), "spellings")


def list_pairs(keys: Keys, verdicts: Verdicts) -> dict[str, Any]:
    """The pairs that a person should read, with their causes and reasons."""
    _, splits = verdicts.splits(keys)
    merges = verdicts.false_merges(keys)
    explained = [pair for pair in merges if verdicts.merged(*pair)]
    accepted = [pair for pair in sorted(verdicts.equal) if verdicts.accepted(*pair)]
    return {
        "split": list_splits(verdicts, splits),
        "merges not explained": [pair for pair in merges if not verdicts.merged(*pair)],
        "merges explained": {
            name: _exception(MERGED[name], _telling_pairs(verdicts, pairs), len(pairs))
            for name, pairs in _group(explained, verdicts.merged).items()
        },
        "verdict equal, other values": {
            name: _exception(ACCEPTED[name], pairs[:EXAMPLES], len(pairs))
            for name, pairs in _group(accepted, verdicts.accepted).items()
        },
    }


def list_splits(verdicts: Verdicts, splits: list[Pair]) -> dict[str, Any]:
    """Split pairs with a gold, by cause; pairs of two spellings if neither splits from its gold."""

    def cause(a: str, b: str) -> str:
        return _cause(verdicts, a, b)

    with_gold = [pair for pair in splits if verdicts.pairs[pair] in (GOLD_AND_SPELLING, TWO_GOLDS)]
    split_from_gold = {text for pair in with_gold for text in pair if not _is_gold(verdicts, text)}
    others = [pair for pair in splits if verdicts.pairs[pair] not in (GOLD_AND_SPELLING, TWO_GOLDS)]
    follows = [pair for pair in others if not split_from_gold.isdisjoint(pair)]
    remaining = [pair for pair in others if split_from_gold.isdisjoint(pair)]
    return {
        "with a gold": _group(with_gold, cause),
        "of spellings, one of which splits from its gold": len(follows),
        "other": _group(remaining, cause),
    }


def _cause(verdicts: Verdicts, a: str, b: str) -> str:
    """What was done to the texts of a pair."""
    homes = verdicts.homes_of_one_answer(a, b)
    if homes:
        changes = {home.change.split(" + ")[0] for home in homes} - {"gold"}
        return " and ".join(sorted(changes)) or "two golds"
    changes = {min(home.change for home in verdicts.homes[text]) for text in (a, b)}
    return " and ".join(sorted(changes))


def _group(pairs: Iterable[Pair], name: Callable[[str, str], str | None]) -> dict[str, list[Pair]]:
    """The pairs by name, the most first."""
    groups: dict[Any, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[name(*pair)].append(pair)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def _exception(reason: str, listed: list[Pair], pairs: int) -> dict[str, Any]:
    return {"reason": reason, "pairs": pairs, "listed": listed}


def _telling_pairs(verdicts: Verdicts, pairs: list[Pair]) -> list[Pair]:
    """The pairs with a gold, from which the others follow. The first pair if there are none."""
    with_gold = [pair for pair in pairs if any(_is_gold(verdicts, text) for text in pair)]
    return with_gold or pairs[:1]


def _is_gold(verdicts: Verdicts, text: str) -> bool:
    return any(home.change == "gold" for home in verdicts.homes[text])
