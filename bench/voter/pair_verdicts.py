"""math-verify's verdicts on many pairs of texts, in processes that can be killed.

This file is also the program of these processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple

from srt_fast.tasks import scorer_process
from srt_fast.tasks.scorer_process import ScorerProcess

SCORER = "either way"
PART = 5_000  # pairs that a process takes at a time
AS_GOLD = "${}$"  # as the trainer's tasks give an answer to math-verify
AS_ANSWER = "\\boxed{{{}}}"  # as a completion has it


class Reading(NamedTuple):
    """What math-verify parses from a text."""

    values: list
    strings: set[str]  # what it falls back to
    name: str  # of the values: equal names have equal verdicts


def equal_pairs(pairs: list[tuple[str, str]], processes: int) -> tuple[set[tuple[str, str]], int]:
    """The pairs that math-verify calls equal, and how many pairs have no verdict.

    A process keeps what it has parsed. So neighbours in the list should share texts. Progress goes
    to standard error.
    """
    parts = [pairs[start : start + PART] for start in range(0, len(pairs), PART)]
    scorers = [
        ScorerProcess(SCORER, failure_note="no verdict", program=__file__) for _ in range(processes)
    ]
    idle: SimpleQueue[ScorerProcess] = SimpleQueue()
    for scorer in scorers:
        idle.put(scorer)

    def verdicts_of(part: list[tuple[str, str]]) -> list[bool]:
        scorer = idle.get()
        verdicts = [scorer.accepts(*pair) for pair in part]
        idle.put(scorer)
        return verdicts

    verdicts: list[bool] = []
    with ThreadPoolExecutor(processes) as threads:
        for part in threads.map(verdicts_of, parts):
            verdicts += part
            print(f"  {len(verdicts)} of {len(pairs)} pairs", file=sys.stderr, flush=True)
    equal = {pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict}
    return equal, sum(scorer.failures for scorer in scorers)


def _either_way() -> Callable[[str, str], bool]:
    """A scorer of two texts. They are equal if math-verify says so in either direction.

    It compares them as gold answers, and as answers. Parses and verdicts are kept.
    """
    from math_verify import parse, verify
    from sympy import preorder_traversal, srepr

    readings: dict[str, list[Reading]] = {}
    verdicts: dict[tuple[str, str], bool] = {}

    def name_of(value: Any) -> str:
        order = [
            srepr(node._unsorted_args)
            for node in preorder_traversal(value)
            if hasattr(node, "_unsorted_args")
        ]
        return srepr(value) + "".join(order)

    def read(text: str) -> Reading:
        parsed = parse(text, parsing_timeout=None)
        values = [value for value in parsed if not isinstance(value, str)]
        strings = {value for value in parsed if isinstance(value, str) and value}
        return Reading(values, strings, "\n".join(map(name_of, values)))

    def readings_of(text: str) -> list[Reading]:
        if text not in readings:
            stripped = text.strip().strip("$")
            readings[text] = [read(AS_GOLD.format(stripped)), read(AS_ANSWER.format(text))]
        return readings[text]

    def accepts(gold: Reading, answer: Reading) -> bool:
        names = (gold.name, answer.name)
        if names not in verdicts:
            verdicts[names] = verify(gold.values, answer.values, timeout_seconds=None)
        return verdicts[names]

    def score(text: str, other: str) -> bool:
        return any(
            bool(left.strings & right.strings) or accepts(left, right) or accepts(right, left)
            for left, right in zip(readings_of(text), readings_of(other), strict=True)
        )

    return score


if __name__ == "__main__":
    scorer_process.SCORERS[SCORER] = _either_way
    scorer_process.serve()
