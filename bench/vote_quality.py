r"""How well the vote's keys tell answers apart and join spellings, compared with math-verify.

    python bench/vote_quality.py --out bench/results/
    python bench/vote_quality.py --limit 30 --strip-string \
        TTRL/verl/verl/utils/reward_score/ttrl/qwen/qwen_math_parser.py

Pairs. Each gold answer under --data makes a family: the gold, the ways in which a model spells it,
and near misses, which are other values. math-verify compares all pairs of golds, all pairs of a
family except those of two near misses, and all other pairs that have one key in any of the systems.
Two texts are equal if math-verify says so in either direction, of `$text$` or of `\boxed{text}`.
Left out are the other pairs of two families, 10^8 of them.

Sets. The golds of these files, of CHAMP and of reasoning-gym's data sets with short answers are
respelled trivially. Golds of a set that have one key are listed. A value is made of the golds that
are one number, and of what a model writes for them if math-verify calls it equal. It splits if its
texts have several keys.

Cases. --cases re-makes public bug reports. Completions have one key if they say one value.

Completions. voter/data/ has outputs of models, with the answers that a careful reader finds in
them. Each rule reads them, and the solutions of MATH-500.

All of it takes about 10 minutes on two cores. The last line of standard output is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from measure import environment
from report import Table, show
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import ANSWER_RULES, read_answer
from voter.completions.cases import evaluate_cases
from voter.completions.readings import evaluate_rules, read_completions, solution_rows
from voter.completions.tables import case_table, reading_table
from voter.corpus import all_pairs, make_corpus
from voter.golds.figures import evaluate_sets
from voter.golds.sets import FILES, GoldSet, read_sets
from voter.golds.tables import merge_table, respelling_table, set_table, split_table
from voter.pair_verdicts import equal_pairs
from voter.quality import KeyFunction, evaluate_system, list_pairs
from voter.quality_report import make_tables, write_report
from voter.strip_string import load_strip_string
from voter.verdicts import Verdicts

SHARED = Path(__file__).parents[2] / "shared"
DATA = SHARED / "data"
CASES = SHARED / "cases" / "answers.jsonl"
SOLUTIONS = "math500_solutions.jsonl"
RULES = tuple(rule for rule in ANSWER_RULES if rule != "whole")
GYM_ANSWERS = 10  # of each of reasoning-gym's data sets
VERSIONS = ("math-verify", "latex2sympy2_extended", "sympy", "reasoning-gym")


def read_rows(data: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (data / name).read_text(encoding="utf-8").splitlines()]


def read_golds(data: Path) -> list[str]:
    """The gold answers of FILES, each once."""
    rows = [row for name in FILES.values() for row in read_rows(data, name)]
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


def wild_figures(
    sets: list[GoldSet], cases: Path, rows: list[dict], seed: int, processes: int
) -> dict[str, Any]:
    """The figures of our keys and rules beyond pairs of curated answers.

    cases: a file; there are no figures of cases without it. rows: problems with solutions.
    """
    has_cases = cases.is_file()
    if not has_cases:
        print(f"cases skipped: no {cases} (--cases)", file=sys.stderr)
    return {
        "cases": evaluate_cases(cases, read_answer) if has_cases else [],
        "completions": evaluate_rules(read_completions() + solution_rows(rows), RULES, read_answer),
        "sets": evaluate_sets(sets, answer_key, seed, processes),
    }


def wild_tables(wild: dict[str, Any]) -> list[Table]:
    """The tables of wild_figures."""
    of_sets = [
        make(wild["sets"]) for make in (set_table, respelling_table, merge_table, split_table)
    ]
    return [case_table(wild["cases"]), reading_table(wild["completions"]), *of_sets]


def draw(golds: list[str], count: int, seed: int) -> list[str]:
    return random.Random(seed).sample(golds, min(count, len(golds)))


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
        help=f"folder of {', '.join(FILES.values())} and {SOLUTIONS}",
    )
    add("--cases", type=Path, default=CASES, help="cases of completions with their values")
    add(
        "--strip-string",
        type=Path,
        metavar="FILE",
        help="TTRL's parser of answers (voter/strip_string.py says which)",
    )
    add("--limit", type=int, help="only this many gold answers of a set, drawn with --seed")
    add("--processes", type=int, default=2, help="that run math-verify")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="folder for vote_quality.json and vote_quality.md")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> int:
    """The exit status: 1 if a merge of ours is not explained."""
    if not (options.data / FILES["MATH-500"]).is_file():
        print(f"skipped: no {FILES['MATH-500']} in {options.data} (--data)", file=sys.stderr)
        return 0
    golds = read_golds(options.data)
    sets = read_sets(options.data, GYM_ANSWERS, options.seed)
    if options.limit:
        golds = draw(golds, options.limit, options.seed)
        sets = [
            a_set._replace(golds=draw(a_set.golds, options.limit, options.seed)) for a_set in sets
        ]
    rows = read_rows(options.data, SOLUTIONS)
    key_functions = make_key_functions(options.strip_string)
    start = time.monotonic()
    figures, verdicts = compare(golds, rows, key_functions, options.seed, options.processes)
    wild = wild_figures(sets, options.cases, rows, options.seed, options.processes)
    document = {
        "how": __doc__,
        "environment": environment(torch.device("cpu")),
        "versions": {name: version(name) for name in VERSIONS if find_spec(name.replace("-", "_"))},
        "seconds": round(time.monotonic() - start),
        **figures,
        **wild,
    }
    tables = [*wild_tables(wild), *make_tables(document, verdicts)]
    for table in tables:
        show(*table)
    if options.out:
        write_report(options.out, document, tables)
    unexplained = document.pop("ours")["merges not explained"]
    unexplained += [pair for found in wild["sets"] for pair in found["merges"]["not explained"]]
    print(json.dumps(document | {"merges not explained": unexplained}, ensure_ascii=False))
    return int(bool(unexplained))


if __name__ == "__main__":
    sys.exit(main(parse_options()))
