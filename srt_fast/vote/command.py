"""`srt-fast vote`: the majority vote over saved completions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from srt_fast.config.reward import ShareOver
from srt_fast.config.task import AnswerRule

DESCRIPTION = r"""
The majority vote over saved completions of any system. Needs no model and no tokenizer. Each line
of the file is a JSON object, either a prompt with the list of its completions:
  {"prompt": "1/2+1/2=", "completions": ["\\boxed{1}", "\\boxed{2}"]}
or one completion, which is grouped by its prompt:
  {"prompt": "1/2+1/2=", "completion": "\\boxed{1}"}
A completion is a text, an object with text, content or message.content, or a list of chat
messages.
"""
EXAMPLE = """
example: srt-fast vote samples.jsonl --completions response --group-by prompt --gold answer \\
             --out votes.jsonl
"""


def main(argv: list[str]) -> int:
    """Run the command. Returns the exit code 0. Raises ValueError for bad arguments or files."""
    options = _parser().parse_args(argv)
    if options.limit < 0:
        raise ValueError(f"--limit: expected at least 0, got {options.limit}")
    # These import torch, which takes seconds. `srt-fast vote --help` must not need it.
    from srt_fast.vote.completions import Fields, read_groups
    from srt_fast.vote.table import print_votes
    from srt_fast.vote.vote import summary, vote, write_rows

    fields = Fields(completions=options.completions, group_by=options.group_by, gold=options.gold)
    groups, fields = read_groups(options.file, fields)
    votes = vote(groups, options.rule, options.share_over)
    if options.out:
        write_rows(Path(options.out), votes)
    print_votes(votes, options.limit, summary(votes, fields.gold))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="srt-fast vote",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description=DESCRIPTION.strip(),
        epilog=EXAMPLE.strip(),
    )
    parser.add_argument(
        "file", metavar="FILE.jsonl", help="file to read; - reads from standard input"
    )
    parser.add_argument(
        "--completions",
        metavar="FIELD",
        help="field with a row's completion or its list of completions; a.b.c goes into objects "
        "(default: the first of completions, responses, outputs, samples, ... in the first row)",
    )
    parser.add_argument(
        "--group-by",
        metavar="FIELD",
        help="field whose value is the same in all rows of a group (default: the first of prompt, "
        "problem, question, ..., id, ... in the first row; a row with a list is a whole group)",
    )
    parser.add_argument(
        "--gold",
        metavar="FIELD",
        help="field with the gold answer or solution, to report accuracy (default: gold or answer, "
        "if the first row has it and the rows of each group agree on it)",
    )
    parser.add_argument(
        "--rule",
        choices=get_args(AnswerRule),
        default="boxed",
        help="where the final answer of a completion is (default: boxed)",
    )
    parser.add_argument(
        "--share-over",
        choices=get_args(ShareOver),
        default="all",
        help="the share counts over all completions, or over those with an answer (default: all)",
    )
    parser.add_argument(
        "--limit", type=int, default=20, metavar="N", help="groups to print (default: 20)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE.jsonl",
        help="write a JSON object for each group: group, majority, share, runner_up, n, valid, "
        "split, and with gold: gold, correct, accuracy",
    )
    return parser
