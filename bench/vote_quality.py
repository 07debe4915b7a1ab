r"""How well the vote's keys tell answers apart and join spellings, compared with math-verify.

    python bench/vote_quality.py --out bench/results/
    python bench/vote_quality.py --limit 30 --strip-string \
        TTRL/verl/verl/utils/reward_score/ttrl/qwen/qwen_math_parser.py

Each gold answer under --data makes a family: the gold, the ways in which a model spells it, and
near misses, which are other values. math-verify compares all pairs of golds, all pairs of a family
except those of two near misses, and all other pairs that have one key in any of the systems. Two
texts are equal if math-verify says so in either direction, of `$text$` or of `\boxed{text}`. Left
out are the other pairs of two families, 10^8 of them. It takes about 5 minutes on two cores. The
last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from measure import environment
from report import show
from srt_kernels.answers.canonical import answer_key
from voter.corpus import all_pairs, make_corpus
from voter.pair_verdicts import equal_pairs
from voter.quality import KeyFunction, evaluate_system, list_pairs
from voter.quality_report import make_tables, write_report
from voter.strip_string import load_strip_string
from voter.verdicts import Verdicts

DATA = Path(__file__).parents[2] / "shared" / "data"
FILES = ("math500.jsonl", "amc.jsonl", "aime24.jsonl")
SOLUTIONS = "math500_solutions.jsonl"
VERSIONS = ("math-verify", "latex2sympy2_extended", "sympy")


def read_rows(data: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (data / name).read_text(encoding="utf-8").splitlines()]


def read_golds(data: Path) -> list[str]:
    """The gold answers of FILES, each once."""
    rows = [row for name in FILES for row in read_rows(data, name)]
    return list(dict.fromkeys(row["answer"] for row in rows))


def compare(
    golds: list[str],
    rows: list[dict],
    key_functions: dict[str, KeyFunction],
    seed: int,
    processes: int,
) -> tuple[dict[str, Any], Verdicts]:
    """The figures of every system and the lists of ours; the verdicts behind them.

    rows: problems with solutions. key_functions: name of a system -> its keys; "ours" is one.
    """
    corpus = make_corpus(golds, seed)
    keys = {name: {text: key(text) for text in corpus.texts} for name, key in key_functions.items()}
    pairs = all_pairs(corpus, keys)
    sizes = {"golds": len(corpus.golds), "texts": len(corpus.texts), "pairs": len(pairs)}
    print(", ".join(f"{size} {name}" for name, size in sizes.items()), file=sys.stderr, flush=True)
    equal, failures = equal_pairs(list(pairs), processes)
    verdicts = Verdicts(corpus, pairs, equal)
    systems = [
        evaluate_system(name, key, keys[name], verdicts, rows)
        for name, key in key_functions.items()
    ]
    figures = {
        **sizes,
        "without verdict": failures,
        "systems": systems,
        "ours": list_pairs(keys["ours"], verdicts),
    }
    return figures, verdicts


def make_key_functions(strip_string: Path | None) -> dict[str, KeyFunction]:
    key_functions: dict[str, KeyFunction] = {"raw string": lambda text: text.strip() or None}
    if strip_string:
        key_functions["TTRL strip_string"] = load_strip_string(strip_string)
    return key_functions | {"ours": answer_key}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=DATA,
        help=f"folder of {', '.join(FILES)} and {SOLUTIONS}",
    )
    add(
        "--strip-string",
        type=Path,
        metavar="FILE",
        help="TTRL's parser of answers (voter/strip_string.py says which)",
    )
    add("--limit", type=int, help="only this many gold answers, drawn with --seed")
    add("--processes", type=int, default=2, help="that run math-verify")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="folder for vote_quality.json and vote_quality.md")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> int:
    """The exit status: 1 if a merge of ours is not explained."""
    if not (options.data / FILES[0]).is_file():
        print(f"skipped: no {FILES[0]} in {options.data} (--data)", file=sys.stderr)
        return 0
    golds = read_golds(options.data)
    if options.limit:
        golds = random.Random(options.seed).sample(golds, min(options.limit, len(golds)))
    rows = read_rows(options.data, SOLUTIONS)
    key_functions = make_key_functions(options.strip_string)
    start = time.monotonic()
    figures, verdicts = compare(golds, rows, key_functions, options.seed, options.processes)
    document = {
        "how": __doc__,
        "environment": environment(torch.device("cpu")),
        "versions": {name: version(name) for name in VERSIONS},
        "seconds": round(time.monotonic() - start),
        **figures,
    }
    tables = make_tables(document, verdicts)
    for table in tables:
        show(*table)
    if options.out:
        write_report(options.out, document, tables)
    unexplained = document.pop("ours")["merges not explained"]
    print(json.dumps(document | {"merges not explained": unexplained}, ensure_ascii=False))
    return int(bool(unexplained))


if __name__ == "__main__":
    sys.exit(main(parse_options()))
