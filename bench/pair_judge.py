"""math-verify's verdict on many pairs, in processes that can be killed. This file is also the child's program."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from srt_fast.tasks import scorer_process as judge

READINGS = (
    "${}$",
    "\\boxed{{{}}}",
)  # as the trainer's tasks give an answer to math-verify, and as a completion has it


def _either_way() -> Callable[[str, str], bool]:
    """math-verify's verdict on two texts: equal when either direction says so, of either reading. All of it is kept."""
    from math_verify import parse, verify
    from sympy import preorder_traversal, srepr

    parsed: dict[str, list[tuple[list, set[str], str]]] = {}
    verdicts: dict[tuple[str, str], bool] = {}

    def fingerprint(value: Any) -> str:
        order = [
            srepr(node._unsorted_args)
            for node in preorder_traversal(value)
            if hasattr(node, "_unsorted_args")
        ]
        return srepr(value) + "".join(order)

    def read(text: str) -> list[tuple[list, set[str], str]]:
        """In each reading the values, the strings that math-verify falls back to, and a name of the values."""
        if text not in parsed:
            parsed[text] = []
            for reading, written in zip(READINGS, (text.strip().strip("$"), text), strict=True):
                found = parse(reading.format(written), parsing_timeout=None)
                values = [value for value in found if not isinstance(value, str)]
                strings = {value for value in found if isinstance(value, str) and value}
                parsed[text].append((values, strings, "\n".join(map(fingerprint, values))))
        return parsed[text]

    def accepts(gold: list, answer: list, names: tuple[str, str]) -> bool:
        if names not in verdicts:
            verdicts[names] = verify(gold, answer, timeout_seconds=None)
        return verdicts[names]

    def score(text: str, other: str) -> bool:
        readings = list(zip(read(text), read(other), strict=True))
        return any(
            one[1] & two[1]
            or accepts(one[0], two[0], (one[2], two[2]))
            or accepts(two[0], one[0], (two[2], one[2]))
            for one, two in readings
        )

    return score


def judge_pairs(pairs: list[tuple[str, str]], judges: int) -> tuple[set[tuple[str, str]], int]:
    """Those judged equal, and how many had no verdict. Neighbours in the list should share texts: a child keeps its parses."""
    size = -(-len(pairs) // judges)
    parts = [pairs[start : start + size] for start in range(0, len(pairs), max(size, 1))]
    pool = [
        judge.ScorerProcess("either way", failure_note="no verdict", program=__file__)
        for _ in parts
    ]
    with ThreadPoolExecutor(max(len(pool), 1)) as threads:
        verdicts = list(
            threads.map(lambda asked, part: [asked.accepts(*pair) for pair in part], pool, parts)
        )
    told = [verdict for part in verdicts for verdict in part]
    return {pair for pair, verdict in zip(pairs, told, strict=True) if verdict}, sum(
        asked.failures for asked in pool
    )


if __name__ == "__main__":
    judge.SCORERS["either way"] = _either_way
    judge.serve()
