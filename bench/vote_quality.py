r"""How well the vote's keys tell answers apart and bring spellings together, with math-verify as the judge.

    python bench/vote_quality.py --out bench/results/
    python bench/vote_quality.py --limit 30 --strip-string TTRL/verl/verl/utils/reward_score/ttrl/qwen/qwen_math_parser.py

Each gold answer under --data makes a family: the gold, the ways in which a model spells it, and near misses, which are
other values. Judged are all pairs of golds, all pairs of a family but those of two near misses, and whatever else has
one key in any of the systems. Two texts are equal when math-verify says so in either direction, of `$text$` or of
`\boxed{text}`. Left out: the other pairs of two families, 10^8 of them. About 5 minutes on two cores.
The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from measure import environment
from pair_judge import judge_pairs
from report import markdown, show
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import read_answer
from strip_string import load_strip_string
from vote_pairs import ACCEPTED, MERGED, NEAR, ORIGINS, Verdicts, all_pairs, make_corpus, read_rows

DATA = Path(__file__).parents[2] / "shared" / "data"
FILES = ("math500.jsonl", "amc.jsonl", "aime24.jsonl")


def extraction(rows: list[dict], key: Callable[[str], Any]) -> tuple[int, list[str]]:
    """How many solutions' last boxes have the gold answer's key; the golds of the others."""
    missed = [
        row["answer"]
        for row in rows
        if key(read_answer(row["solution"], "boxed") or "") != key(row["answer"])
    ]
    return len(rows) - len(missed), missed


def _cause(verdicts: Verdicts, a: str, b: str) -> str:
    names = verdicts.common(a, b)
    if names:
        return (
            " and ".join(sorted({name.split(" + ")[0] for _, name in names} - {"gold"}))
            or "two golds"
        )
    return " and ".join(sorted({min(name for _, name in verdicts.homes[text]) for text in (a, b)}))


def _grouped(
    pairs: Iterable[tuple[str, str]], name: Callable[[str, str], str]
) -> dict[str, list[tuple[str, str]]]:
    groups = defaultdict(list)
    for a, b in pairs:
        groups[name(a, b)].append((a, b))
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def split_lists(verdicts: Verdicts, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Split pairs with a gold by cause. Of pairs of two spellings those alone where neither splits from its gold."""
    with_gold = [
        p for p in pairs if verdicts.pairs[p] in ("gold and a spelling of it", "two golds")
    ]
    apart = {
        text
        for pair in with_gold
        for text in pair
        if "gold" not in {name for _, name in verdicts.homes[text]}
    }
    others = [pair for pair in pairs if pair not in set(with_gold)]
    return {
        "with a gold": _grouped(with_gold, lambda a, b: _cause(verdicts, a, b)),
        "of spellings, one of which splits from its gold": sum(
            not apart.isdisjoint(pair) for pair in others
        ),
        "other": _grouped(
            [pair for pair in others if apart.isdisjoint(pair)], lambda a, b: _cause(verdicts, a, b)
        ),
    }


def judge_system(
    name: str, key: Callable[[str], Any], keys: dict[str, Any], verdicts: Verdicts, rows: list[dict]
) -> dict:
    """A system's figures."""
    counts, _ = verdicts.split(keys)
    merges = verdicts.false_merges(keys)
    causes = [
        _cause(verdicts, *pair).split(" and ") for pair in merges if not verdicts.merged(*pair)
    ]
    unexplained = Counter(
        next((one for one in cause if one.startswith(NEAR)), "spellings") for cause in causes
    )
    right, missed = extraction(rows, key)
    origins = {
        origin: {what: counts[origin, what] for what in ("equal", "one key")} for origin in ORIGINS
    }
    total = {what: sum(counts[origin, what] for origin in ORIGINS) for what in ("equal", "one key")}
    return {
        "system": name,
        "solutions": len(rows),
        "extracted": right,
        "missed": missed,
        **total,
        "by origin": origins,
        "one key, judged different": len(merges),
        "not explained": sum(unexplained.values()),
        "not explained, by": dict(unexplained.most_common()),
    }


def lists(keys: dict[str, Any], verdicts: Verdicts) -> dict[str, Any]:
    """What a person should read of our keys."""
    _, split = verdicts.split(keys)
    merges = verdicts.false_merges(keys)
    explained = _grouped((pair for pair in merges if verdicts.merged(*pair)), verdicts.merged)
    accepted = _grouped(
        (pair for pair in sorted(verdicts.equal) if verdicts.accepted(*pair)), verdicts.accepted
    )
    return {
        "split": split_lists(verdicts, split),
        "merges not explained": [pair for pair in merges if not verdicts.merged(*pair)],
        "merges explained": {
            name: _exception(MERGED[name], _telling(verdicts, p), len(p))
            for name, p in explained.items()
        },
        "judged equal, other values": {
            name: _exception(ACCEPTED[name], p[:5], len(p)) for name, p in accepted.items()
        },
    }


def _exception(reason: str, listed: list[tuple[str, str]], pairs: int) -> dict[str, Any]:
    return {"reason": reason, "pairs": pairs, "listed": listed}


def _telling(verdicts: Verdicts, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of many pairs those with a gold, from which the others follow; or where there is none the first."""
    return [
        p for p in pairs if "gold" in {name for text in p for _, name in verdicts.homes[text]}
    ] or pairs[:1]


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else ""


Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def system_table(found: list[dict]) -> Table:
    origins = [origin for origin, counts in found[0]["by origin"].items() if counts["equal"]]
    columns = [
        "system",
        "gold's key from MATH-500 solutions",
        "equal pairs with one key",
        *(f"of them: {o}" for o in origins),
    ]
    columns += ["one key, judged different", "not explained"]
    lines = []
    for row in found:
        shares = [
            percent(row["by origin"][origin]["one key"], row["by origin"][origin]["equal"])
            for origin in origins
        ]
        lines.append(
            [
                row["system"],
                percent(row["extracted"], row["solutions"]),
                percent(row["one key"], row["equal"]),
                *shares,
            ]
        )
        lines[-1] += [str(row[name]) for name in columns[-2:]]
    return "The vote's keys against math-verify", columns, lines


def pair_table(verdicts: Verdicts) -> Table:
    judged, equal = (
        Counter(verdicts.pairs.values()),
        Counter(verdicts.pairs[pair] for pair in verdicts.equal),
    )
    other = Counter(verdicts.pairs[pair] for pair in verdicts.equal if verdicts.accepted(*pair))
    lines = [
        [origin, *(str(counts[origin]) for counts in (judged, equal, other))] for origin in ORIGINS
    ]
    return "Pairs", ["origin", "judged", "equal", "other values all the same, left out"], lines


def cause_table(groups: dict[str, list[tuple[str, str]]]) -> Table:
    lines = [
        [cause, str(len(pairs)), ", ".join(f"{a} and {b}" for a, b in pairs[:2])]
        for cause, pairs in groups.items()
    ]
    return (
        "Judged equal and split by ours: a gold and a spelling of it",
        ["cause", "pairs", "for example"],
        lines,
    )


def exception_table(found: dict[str, dict], title: str) -> Table:
    lines = [
        [name, str(one["pairs"]), one["reason"], " and ".join(one["listed"][0])]
        for name, one in found.items()
    ]
    return title, ["what", "pairs", "reason", "for example"], lines


def tables_of(document: dict, verdicts: Verdicts) -> list[Table]:
    ours = document["ours"]
    accepted = "Judged equal, another value: left out of the pairs that should have one key"
    return [
        system_table(document["systems"]),
        pair_table(verdicts),
        cause_table(ours["split"]["with a gold"]),
        exception_table(ours["merges explained"], "One key, judged different, the same value"),
        exception_table(ours["judged equal, other values"], accepted),
    ]


def _listing(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Pairs as code, since they are LaTeX with everything that Markdown minds."""
    return f"**{title}**\n\n```\n" + "\n".join(f"{a!r}  {b!r}" for a, b in pairs) + "\n```\n"


def write(folder: Path, document: dict, tables: list[Table]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vote_quality.json").write_text(
        json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    about = [
        f"{name} {document['environment'][name]}"
        for name in ("device", "threads", "commit", "dirty", "date")
    ]
    about += [f"{name} {version}" for name, version in document["versions"].items()]
    text = [", ".join(about) + "\n", document["how"].partition("\n\n")[2].partition("\n\n")[2]]
    for title, columns, lines in tables:
        text.append(
            markdown(
                title,
                columns,
                [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines],
            )
        )
    ours = document["ours"]
    text += [
        _listing(f"Split: {cause}", pairs) for cause, pairs in ours["split"]["with a gold"].items()
    ]
    text += [
        _listing(f"Split, and neither splits from its gold: {cause}", p)
        for cause, p in ours["split"]["other"].items()
    ]
    text.append(_listing("One key, judged different, not explained", ours["merges not explained"]))
    text += [
        _listing(f"One key, judged different: {one['reason']}", one["listed"])
        for one in ours["merges explained"].values()
    ]
    (folder / "vote_quality.md").write_text("\n".join(text), encoding="utf-8")


def systems(file: Path | None) -> dict[str, Callable[[str], Any]]:
    found: dict[str, Callable[[str], Any]] = {"raw string": lambda text: text.strip() or None}
    if file:
        found["TTRL strip_string"] = load_strip_string(file)
    return found | {"ours": answer_key}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=DATA,
        help=f"folder of {', '.join(FILES)} and math500_solutions.jsonl",
    )
    add(
        "--strip-string",
        type=Path,
        metavar="FILE",
        help="TTRL's parser of answers (strip_string.py says which)",
    )
    add("--limit", type=int, help="only this many gold answers, drawn with --seed")
    add("--judges", type=int, default=2, help="processes that run math-verify")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="folder for vote_quality.json and vote_quality.md")
    return parser.parse_args(arguments)


def compare(
    golds: list[str],
    rows: list[dict],
    keyed: dict[str, Callable[[str], Any]],
    seed: int,
    judges: int,
) -> tuple[dict, Verdicts]:
    """The figures of every system and the lists of ours; the verdicts behind them."""
    corpus = make_corpus(golds, seed)
    keys = {name: {text: key(text) for text in corpus.texts} for name, key in keyed.items()}
    pairs = all_pairs(corpus, keys)
    print(
        f"{len(corpus.golds)} golds, {len(corpus.texts)} texts, {len(pairs)} pairs to judge",
        file=sys.stderr,
        flush=True,
    )
    equal, failures = judge_pairs(list(pairs), judges)
    verdicts = Verdicts(corpus, pairs, equal)
    found = [judge_system(name, key, keys[name], verdicts, rows) for name, key in keyed.items()]
    size = {
        "golds": len(corpus.golds),
        "texts": len(corpus.texts),
        "pairs": len(pairs),
        "without verdict": failures,
    }
    return {**size, "systems": found, "ours": lists(keys["ours"], verdicts)}, verdicts


def main(options: argparse.Namespace) -> int:
    """Exit status: 1 where a merge of ours is not explained."""
    if not (options.data / FILES[0]).is_file():
        print(f"skipped: no {FILES[0]} in {options.data} (--data)", file=sys.stderr)
        return 0
    golds = list(
        dict.fromkeys(row["answer"] for name in FILES for row in read_rows(options.data, name))
    )
    if options.limit:
        golds = random.Random(options.seed).sample(golds, min(options.limit, len(golds)))
    about = {"environment": environment(torch.device("cpu"))}
    about["versions"] = {
        name: version(name) for name in ("math-verify", "latex2sympy2_extended", "sympy")
    }
    rows = read_rows(options.data, "math500_solutions.jsonl")
    start = time.monotonic()
    document, verdicts = compare(
        golds, rows, systems(options.strip_string), options.seed, options.judges
    )
    document = {"how": __doc__, **about, "seconds": round(time.monotonic() - start), **document}
    tables = tables_of(document, verdicts)
    for table in tables:
        show(*table)
    if options.out:
        write(options.out, document, tables)
    ours = document.pop("ours")
    print(
        json.dumps(
            document | {"merges not explained": ours["merges not explained"]}, ensure_ascii=False
        )
    )
    return int(bool(ours["merges not explained"]))


if __name__ == "__main__":
    sys.exit(main(parse_options()))
