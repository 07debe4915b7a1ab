"""The figures of bench/vote_quality.py as tables, lists and files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import Table, markdown
from voter.corpus import ORIGINS, Pair
from voter.verdicts import Verdicts

LISTED = 12  # pairs of a list in Markdown; JSON has all
ENVIRONMENT = ("device", "threads", "commit", "dirty", "date")


def make_tables(document: dict[str, Any], verdicts: Verdicts) -> list[Table]:
    ours = document["ours"]
    return [
        system_table(document["systems"]),
        pair_table(verdicts),
        cause_table(ours["split"]["with a gold"]),
        exception_table(
            "One key, verdict different, the same value",
            ours["merges explained"],
        ),
        exception_table(
            "Verdict equal, another value: left out of the pairs that should have one key",
            ours["verdict equal, other values"],
        ),
    ]


def system_table(systems: list[dict]) -> Table:
    origins = [origin for origin, counts in systems[0]["by origin"].items() if counts["equal"]]
    last_columns = ["one key, verdict different", "not explained"]
    columns = [
        "system",
        "gold's key from MATH-500 solutions",
        "equal pairs with one key",
        *(f"of them: {origin}" for origin in origins),
        *last_columns,
    ]
    lines = []
    for system in systems:
        counts = [system["by origin"][origin] for origin in origins]
        lines.append(
            [
                system["system"],
                percent(system["extracted"], system["solutions"]),
                percent(system["one key"], system["equal"]),
                *(percent(count["one key"], count["equal"]) for count in counts),
                *(str(system[name]) for name in last_columns),
            ]
        )
    return "The vote's keys against math-verify", columns, lines


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else ""


def pair_table(verdicts: Verdicts) -> Table:
    compared = Counter(verdicts.pairs.values())
    equal = Counter(verdicts.pairs[pair] for pair in verdicts.equal)
    accepted = Counter(verdicts.pairs[pair] for pair in verdicts.equal if verdicts.accepted(*pair))
    columns = ["origin", "compared", "equal", "other values all the same, left out"]
    lines = [
        [origin, str(compared[origin]), str(equal[origin]), str(accepted[origin])]
        for origin in ORIGINS
    ]
    return "Pairs", columns, lines


def cause_table(pairs_by_cause: dict[str, list[Pair]]) -> Table:
    lines = [
        [cause, str(len(pairs)), ", ".join(f"{a} and {b}" for a, b in pairs[:2])]
        for cause, pairs in pairs_by_cause.items()
    ]
    title = "Verdict equal and split by ours: a gold and a spelling of it"
    return title, ["cause", "pairs", "for example"], lines


def exception_table(title: str, exceptions: dict[str, dict]) -> Table:
    lines = [
        [name, str(entry["pairs"]), entry["reason"], " and ".join(entry["listed"][0])]
        for name, entry in exceptions.items()
    ]
    return title, ["what", "pairs", "reason", "for example"], lines


def write_report(folder: Path, document: dict[str, Any], tables: list[Table]) -> None:
    """Writes vote_quality.json and vote_quality.md."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    (folder / "vote_quality.json").write_text(text, encoding="utf-8")
    about = [f"{name} {document['environment'][name]}" for name in ENVIRONMENT]
    about += [f"{name} {version}" for name, version in document["versions"].items()]
    _, _, note = document["how"].split("\n\n", 2)
    paragraphs = [", ".join(about) + "\n", note]
    for title, columns, lines in tables:
        cells = [[_escape(cell) for cell in line] for line in lines]
        paragraphs.append(markdown(title, columns, cells))
    paragraphs += _listings(document["ours"]) + _misread_listings(document["completions"])
    (folder / "vote_quality.md").write_text("\n".join(paragraphs), encoding="utf-8")


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _listings(ours: dict[str, Any]) -> list[str]:
    listings = [
        _listing(f"Split: {cause}", pairs) for cause, pairs in ours["split"]["with a gold"].items()
    ]
    listings += [
        _listing(f"Split, and neither splits from its gold: {cause}", pairs)
        for cause, pairs in ours["split"]["other"].items()
    ]
    unexplained = ours["merges not explained"]
    listings.append(_listing("One key, verdict different, not explained", unexplained))
    listings += [
        _listing(f"One key, verdict different: {entry['reason']}", entry["listed"])
        for entry in ours["merges explained"].values()
    ]
    return listings


def _misread_listings(completions: list[dict[str, Any]]) -> list[str]:
    """What a careful reader finds in completions, and what a rule finds in its place."""
    return [
        _listing(
            f"Misread by {of_rule['rule']}: the reader's answer, and the rule's",
            [(label, answer) for _, label, answer in of_rule["misread"]],
        )
        for of_rule in completions
    ]


def _listing(title: str, pairs: Sequence[Pair]) -> str:
    """The first pairs as code: LaTeX has many characters that mean something in Markdown."""
    lines = [f"{a!r}  {b!r}" for a, b in pairs[:LISTED]]
    if len(pairs) > LISTED:
        lines.append(f"and {len(pairs) - LISTED} more")
    return f"**{title}**\n\n```\n" + "\n".join(lines) + "\n```\n"
