"""A second opinion on the vote: math-verify checks a few groups of every step, off the critical
path.

The vote joins answers by their canonical form. For `reward.audit_groups` groups of a step, a thread
asks math-verify, in a process of its own, whether each other answer of the group equals the
majority's, and writes one row per step to audit.jsonl as soon as it knows:

    {"step": 12, "kind": "audit", "time": 1731000000.0, "groups": 2, "pairs": 9, "agreement": 0.889, "false_merges": 0,
     "false_splits": 1, "failures": 0, "dropped": 0, "examples": [["false_splits", "x+1", "1+x"]]}

groups        checked pairs         distinct answers beside the majority's most common spelling, on
which math-verify gave a verdict agreement     part of the pairs in which vote and math-verify
agree; null without pairs false_merges  pairs that are one vote and that math-verify finds different
false_splits  pairs that are two votes and that math-verify finds equal failures      pairs without
a verdict: too slow, too long, a crash, or math-verify cannot parse them dropped       groups that
were not checked, because the audit was QUEUE steps behind or the run ended

Nothing here can stop or delay training: a question that hangs or crashes ends math-verify's process
only (tasks/judge.py), a step's groups are dropped rather than waited for, and any other error ends
the audit with a warning. Which groups are chosen depends on the seed and the step alone; no random
generator of the run is touched.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TextIO

from srt_fast.files import append_rows, open_rows, read_rows
from srt_fast.tasks.scorer_process import ScorerProcess
from srt_fast.tasks.verifiers import MAX_SCORED_CHARS, check_math_verify

logger = logging.getLogger(__name__)

QUEUE = 8  # steps that may wait
CLOSE_WAIT_S = 3.0  # for what waits at the end of the run
EXAMPLES = 3  # disagreements of a step that are written out
COUNTS = ("groups", "pairs", "false_merges", "false_splits", "failures", "dropped")


@dataclass(frozen=True, kw_only=True)
class AuditSample:
    """One group as the vote saw it: keys [A, A, B, 0], majority A."""

    texts: list[str | None]  # ["1/2", "0.5", "3", None]: the answers as they were written
    keys: list[int]  # the same key: one vote; 0: no answer
    majority: int  # key; 0: none


def pairs(ballot: AuditSample) -> list[tuple[str, str, bool]]:
    """(the majority's most common spelling, another answer, whether they are one vote), each answer
    once.
    """
    votes = Counter(
        (key, text)
        for key, text in zip(ballot.keys, ballot.texts, strict=True)
        if key and text is not None
    )
    majority = next(
        (text for (key, text), _ in votes.most_common() if key == ballot.majority), None
    )
    if majority is None:
        return []
    return [(majority, text, key == ballot.majority) for key, text in votes if text != majority]


class Audit:
    """The audit of one run. Does nothing where `groups` is 0. ValueError where math-verify is not
    installed.
    """

    def __init__(self, path: Path, groups: int, seed: int, *, limit_s: int = 5):
        if groups:
            check_math_verify("reward.audit_groups")
        self._path, self._groups, self._seed = path, groups, seed
        self._judge = ScorerProcess(
            "math-verify", limit_s=limit_s, unscored="left out of the audit"
        )
        self._queue: SimpleQueue[tuple[int, list[AuditSample]] | None] = SimpleQueue()
        self._late: deque[tuple[int, int]] = (
            deque()
        )  # (step, groups) that were dropped and are not written yet
        self._stop, self._disk_failed = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._file: TextIO | None = None

    def open(self, resume_step: int | None) -> None:
        """Open the file. On resume, rows of later steps are dropped: those steps are run and
        checked again.
        """
        if self._groups or self._path.exists():
            self._file = open_rows(self._path, resume_step)

    def chosen(self, step: int, count: int) -> list[int]:
        """Which of the step's `count` groups are checked."""
        return sorted(
            random.Random(f"audit/{self._seed}/{step}").sample(
                range(count), min(self._groups, count)
            )
        )

    def submit(self, step: int, ballots: list[AuditSample]) -> None:
        """Have these groups checked. Returns at once; drops and counts them if QUEUE steps are
        waiting.
        """
        if not ballots:
            return
        if self._thread.ident is None:
            self._thread.start()
        if self._queue.qsize() < QUEUE and self._thread.is_alive():
            self._queue.put((step, ballots))
        else:
            self._late.append((step, len(ballots)))

    def close(self) -> None:
        """Wait CLOSE_WAIT_S for what is queued, then give it up. May be called twice."""
        if self._file is None:
            return
        if self._thread.ident is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_WAIT_S)
            self._stop.set()
            self._judge.kill()
            self._thread.join(1.0)
        with contextlib.suppress(OSError):  # a full disk
            if not self._thread.is_alive() and not self._disk_failed:
                self._drop_queued()
                self._write_late()
            self._file.close()
        self._file = None

    def totals(self) -> dict[str, float | int | None]:
        """The figures of the whole run, earlier sessions included; none where nothing was
        submitted.
        """
        return totals(read_rows(self._path)) if self._thread.ident is not None else {}

    def _work(self) -> None:
        """The thread."""
        try:
            while item := self._queue.get():
                self._write_late()
                self._write(*self._checked(*item))
        except Exception as error:  # a full disk, or a scorer that does not start: the run goes on without its audit
            self._late.append((item[0], len(item[1])))
            self._disk_failed = isinstance(error, OSError)  # nothing may follow a half-written row
            if not self._stop.is_set():
                logger.warning("the audit has stopped, training goes on: %s", error)

    def _checked(
        self, step: int, ballots: list[AuditSample]
    ) -> tuple[int, Counter, list[list[str]]]:
        """The step's counts and some of its disagreements."""
        counts, examples = Counter(), []
        for ballot in ballots:
            for majority, other, joined in pairs(ballot):
                fits = max(len(majority), len(other)) <= MAX_SCORED_CHARS
                verdict = self._judge.verdict(majority, other) if fits else None
                if self._stop.is_set():
                    break
                counts["failures" if verdict is None else "pairs"] += 1
                if verdict is not None and verdict != joined:
                    kind = "false_merges" if joined else "false_splits"
                    counts[kind] += 1
                    examples.append([kind, majority, other])
            counts["dropped" if self._stop.is_set() else "groups"] += 1
        return step, counts, examples[:EXAMPLES]

    def _drop_queued(self) -> None:
        """Count what waits as dropped, where the thread ended early."""
        with contextlib.suppress(Empty):
            while item := self._queue.get_nowait():
                self._late.append((item[0], len(item[1])))

    def _write_late(self) -> None:
        while self._late:
            step, groups = self._late.popleft()
            self._write(step, Counter(dropped=groups), [])

    def _write(self, step: int, counts: Counter, examples: list[list[str]]) -> None:
        figures = totals([counts])
        append_rows(
            self._file,
            [
                {
                    "step": step,
                    "kind": "audit",
                    "time": round(time.time(), 3),
                    **figures,
                    "examples": examples,
                }
            ],
        )


def totals(rows: Iterable[dict[str, Any]]) -> dict[str, float | int | None]:
    """The counts of all rows, and the agreement over all their pairs."""
    rows = list(rows)
    sums = {name: sum(row.get(name, 0) for row in rows) for name in COUNTS}
    wrong = sums["false_merges"] + sums["false_splits"]
    agreement = round(1 - wrong / sums["pairs"], 4) if sums["pairs"] else None
    return {
        "groups": sums.pop("groups"),
        "pairs": sums.pop("pairs"),
        "agreement": agreement,
        **sums,
    }


def sentence(figures: dict[str, float | int | None]) -> str:
    """The totals for a person."""
    agreed = (
        "no pair had a verdict"
        if figures["agreement"] is None
        else (
            f"math-verify agrees with the vote on {100 * figures['agreement']:.1f} % of {figures['pairs']:,} pairs of answers"
        )
    )
    return (
        f"audit: {agreed} in {figures['groups']:,} groups; false merges {figures['false_merges']:,}, "
        f"false splits {figures['false_splits']:,}, pairs without a verdict {figures['failures']:,}, "
        f"groups dropped {figures['dropped']:,}"
    )
