"""`srt-fast vote`: the majority vote over saved completions."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from srt_fast.config.reward import ShareOver
from srt_fast.config.task import AnswerRule

if TYPE_CHECKING:
    from srt_fast.rows.place import PlacedRow
    from srt_fast.vote.vote import GroupVote

DESCRIPTION = r"""
The majority vote over saved completions of any system. Needs no model and no tokenizer.

Reads JSON Lines, JSON arrays, CSV, TSV, Parquet, Arrow and logs of inspect, plain or compressed
(gz, bz2, xz, zst). Recognises what OpenAI, vLLM, Anthropic, Gemini, lm-evaluation-harness,
lighteval, inspect, verl, TRL, OpenRLHF, distilabel, NeMo-Skills and others save. A row is a prompt
with the list of its completions:
  {"prompt": "1/2+1/2=", "completions": ["\\boxed{1}", "\\boxed{2}"]}
or one completion, which is grouped by its prompt:
  {"prompt": "1/2+1/2=", "completion": "\\boxed{1}"}
"""
EXAMPLES = r"""
A PATH is the name of a field, or: a.b.c goes into objects, a.0.c into a list, a.*.c into all of
its elements; solution_* and solution_1,solution_2 join columns. Quote a path with a *.

examples:
  srt-fast vote samples.jsonl
  srt-fast vote shards/ other.parquet --out votes.jsonl
  zcat batch.jsonl.gz | srt-fast vote -
  srt-fast vote samples.jsonl --completions response --group-by prompt --gold answer
  srt-fast vote batch.jsonl --completions 'response.body.choices.*.message.content'
  srt-fast vote batch.jsonl --group-by custom_id --group-match '(.*)-sample'
"""


def main(argv: list[str]) -> int:
    """Run the command. Returns the exit code 0. Raises ValueError for bad arguments or files."""
    options = _parser().parse_args(argv)
    if options.limit < 0:
        raise ValueError(f"--limit: expected at least 0, got {options.limit}")
    if options.out and Path(options.out).exists() and not Path(options.out).is_file():
        raise ValueError(f"--out: expected a file, got {options.out!r}, which is none")
    pattern = _pattern(options.group_match)
    # These import pydantic and rich. `srt-fast vote --help` must not wait for them.
    from srt_fast.files import write_atomically
    from srt_fast.rows.read import read_rows
    from srt_fast.vote.groups import GroupReader
    from srt_fast.vote.saved import Fields
    from srt_fast.vote.table import print_votes
    from srt_fast.vote.vote import Totals, row_of, vote

    fields = Fields(
        completions=options.completions,
        group_by=options.group_by,
        gold=options.gold,
        group_match=pattern,
    )
    reader = GroupReader(fields, options.rule)
    with contextlib.closing(reader):
        for place, row in _with_progress(read_rows(options.files, "FILE")):
            reader.add(place, row)
        saved = reader.finish(" ".join(options.files))
    totals = Totals()
    shown: list[GroupVote] = []
    lines: list[str] = []
    for group_vote in vote(saved, options.share_over):
        totals.add(group_vote)
        if len(shown) < options.limit:
            shown.append(group_vote)
        if options.out:
            lines.append(json.dumps(row_of(group_vote), default=str) + "\n")
    if options.out:
        write_atomically(Path(options.out).resolve(), "".join(lines))
    summary = totals.summary(saved.gold_field, reader.skipped.phrases())
    print_votes(shown, totals.groups - len(shown), summary)
    return 0


def _with_progress(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """The rows. A terminal shows their number on standard error meanwhile."""
    if not sys.stderr.isatty():
        yield from rows
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(rows)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ValueError(
            f"--group-match: expected a regular expression, got {text!r} ({error})"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="srt-fast vote",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description=DESCRIPTION.strip(),
        epilog=EXAMPLES.strip(),
    )
    add = parser.add_argument
    add(
        "files",
        metavar="FILE",
        nargs="+",
        help="file, folder of files, or pattern; - reads from standard input",
    )
    add(
        "--completions",
        metavar="PATH",
        help="where a row has its completion or its list of completions (default: by the row's "
        "fields)",
    )
    add(
        "--group-by",
        metavar="PATH",
        help="what is the same in all rows of a group (default: by the row's fields; a row with a "
        "list of completions is a group)",
    )
    add(
        "--group-match",
        metavar="REGEX",
        help="the part of the --group-by value that counts: the first group of a regular "
        "expression, or its whole match",
    )
    add(
        "--gold",
        metavar="PATH",
        help="where a row has the gold answer or solution, to report accuracy (default: by the "
        "row's fields, if the rows of each group agree)",
    )
    add(
        "--rule",
        choices=get_args(AnswerRule),
        default="answer",
        help="where the final answer of a completion is (default: answer, the first of a box, a "
        "tag, #### 5, 'the answer is 5', a letter on its own line, the last number)",
    )
    add(
        "--share-over",
        choices=get_args(ShareOver),
        default="all",
        help="the share counts over all completions, or over those with an answer (default: all)",
    )
    add("--limit", type=int, default=20, metavar="N", help="groups to print (default: 20)")
    add(
        "--out",
        metavar="FILE.jsonl",
        help="write a JSON object for each group: group, majority, share, runner_up, n, valid, "
        "split, and with gold: gold, correct, accuracy",
    )
    return parser
