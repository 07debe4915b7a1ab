"""A second opinion on the vote: math-verify checks a few groups of every step.

The vote joins answers by their canonical form. For `reward.audit_groups` groups of a step, a thread
asks math-verify whether each other answer of the group equals the majority's. math-verify runs in a
process of its own. The thread writes one row per step to audit.jsonl:

    {"step": 12, "kind": "audit", "time": 1731000000.0, "groups": 2, "pairs": 9,
     "agreement": 0.889, "false_merges": 0, "false_splits": 1, "failures": 0, "dropped": 0,
     "examples": [["false_splits", "x+1", "1+x"]]}

groups        groups that were checked
pairs         answers that math-verify compared with the majority's most common spelling
agreement     fraction of the pairs in which vote and math-verify agree; null without pairs
false_merges  pairs that are one vote, and that math-verify finds different
false_splits  pairs that are two votes, and that math-verify finds equal
failures      pairs that math-verify did not compare: too slow, too long, a crash, or not parsed
dropped       groups that were not checked: the audit was QUEUE_STEPS behind, or the run ended
examples      up to EXAMPLES pairs on which they disagree: kind, majority, other answer

The audit cannot stop or delay training. A question that hangs or crashes ends math-verify's process
only. Groups are dropped if the audit is behind. Any other error ends the audit with a warning. The
choice of the groups depends on the seed and the step only, and touches no random generator of the
run.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TextIO

from srt_fast.files import append_rows, open_rows, read_rows
from srt_fast.tasks.scorer_process import ScorerProcess
from srt_fast.tasks.verifiers import MAX_SCORED_CHARS, check_math_verify

logger = logging.getLogger(__name__)

QUEUE_STEPS = 8
"""Steps that may wait."""
CLOSE_WAIT_S = 3.0
"""Seconds that the end of the run waits for the steps in the queue."""
EXAMPLES = 3
"""Disagreements of a step that are written out."""

Totals = dict[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class AuditSample:
    """One group as the vote saw it: keys [A, A, B, 0], majority A."""

    texts: list[str | None]  # the answers as they were written: ["1/2", "0.5", "3", None]
    keys: list[int]  # equal keys are one vote; 0: no answer
    majority: int  # a key; 0: none


def answer_pairs(sample: AuditSample) -> list[tuple[str, str, bool]]:
    """(the majority's most common spelling, another answer, whether they are one vote).

    Each answer comes once.
    """
    votes = Counter(
        (key, text)
        for key, text in zip(sample.keys, sample.texts, strict=True)
        if key and text is not None
    )
    majority_texts = [text for (key, text), _ in votes.most_common() if key == sample.majority]
    if not majority_texts:
        return []
    majority = majority_texts[0]
    return [(majority, text, key == sample.majority) for key, text in votes if text != majority]


class Audit:
    """The audit of one run. Does nothing with `groups` 0.

    limit_s: seconds that math-verify has for one pair. Raises ValueError if math-verify is not
    installed.
    """

    def __init__(self, path: Path, groups: int, seed: int, *, limit_s: int = 5) -> None:
        if groups:
            check_math_verify("reward.audit_groups")
        self._path = path
        self._groups = groups
        self._seed = seed
        self._scorer = ScorerProcess(
            "math-verify", limit_s=limit_s, failure_note="left out of the audit"
        )
        self._queue: SimpleQueue[tuple[int, list[AuditSample]] | None] = SimpleQueue()
        self._dropped: deque[tuple[int, int]] = deque()  # step, groups: not written yet
        self._stop = threading.Event()
        self._disk_failed = False
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._file: TextIO | None = None

    def open(self, resume_step: int | None) -> None:
        """Open the file. A resume drops the rows of later steps: those steps are run again."""
        if self._groups or self._path.exists():
            self._file = open_rows(self._path, resume_step)

    def choose_groups(self, step: int, count: int) -> list[int]:
        """Which of the step's `count` groups are checked."""
        generator = random.Random(f"audit/{self._seed}/{step}")
        return sorted(generator.sample(range(count), min(self._groups, count)))

    def submit(self, step: int, samples: list[AuditSample]) -> None:
        """Have these groups checked. Returns at once.

        Drops and counts the groups if QUEUE_STEPS steps are waiting.
        """
        if not samples:
            return
        if not self._has_begun():
            self._thread.start()
        if self._queue.qsize() < QUEUE_STEPS and self._thread.is_alive():
            self._queue.put((step, samples))
        else:
            self._dropped.append((step, len(samples)))

    def close(self) -> None:
        """Wait CLOSE_WAIT_S for the steps in the queue, then drop them. May be called twice."""
        if self._file is None:
            return
        if self._has_begun():
            self._queue.put(None)
            self._thread.join(CLOSE_WAIT_S)
            self._stop.set()
            self._scorer.kill()
            self._thread.join(1.0)
        with contextlib.suppress(OSError):  # a full disk
            if not self._thread.is_alive() and not self._disk_failed:
                self._drop_queue()
                self._write_dropped()
            self._file.close()
        self._file = None

    def totals(self) -> Totals:
        """The figures of the whole run, earlier sessions included. Empty without any group."""
        return sum_counts(read_rows(self._path)) if self._has_begun() else {}

    def _has_begun(self) -> bool:
        return self._thread.ident is not None

    def _work(self) -> None:
        """The thread."""
        step = 0
        samples: list[AuditSample] = []
        try:
            while item := self._queue.get():
                step, samples = item
                self._write_dropped()
                self._check(step, samples)
        except Exception as error:
            # A full disk, or a scorer that does not start: the run goes on without its audit.
            self._dropped.append((step, len(samples)))
            # No row may follow a half-written one.
            self._disk_failed = isinstance(error, OSError)
            if not self._stop.is_set():
                logger.warning("the audit has stopped, training goes on: %s", error)

    def _check(self, step: int, samples: list[AuditSample]) -> None:
        """Compare the step's pairs, and write its row."""
        counts: Counter[str] = Counter()
        examples: list[list[str]] = []
        for sample in samples:
            for majority, answer, is_one_vote in answer_pairs(sample):
                is_short = max(len(majority), len(answer)) <= MAX_SCORED_CHARS
                is_equal = self._scorer.score(majority, answer) if is_short else None
                if self._stop.is_set():
                    break
                counts["failures" if is_equal is None else "pairs"] += 1
                if is_equal is not None and is_equal != is_one_vote:
                    kind = "false_merges" if is_one_vote else "false_splits"
                    counts[kind] += 1
                    examples.append([kind, majority, answer])
            counts["dropped" if self._stop.is_set() else "groups"] += 1
        self._write(step, counts, examples[:EXAMPLES])

    def _drop_queue(self) -> None:
        """Count the groups in the queue as dropped. The thread has ended before it took them."""
        with contextlib.suppress(Empty):
            while item := self._queue.get_nowait():
                step, samples = item
                self._dropped.append((step, len(samples)))

    def _write_dropped(self) -> None:
        while self._dropped:
            step, groups = self._dropped.popleft()
            self._write(step, Counter(dropped=groups), [])

    def _write(self, step: int, counts: Counter[str], examples: Sequence[list[str]]) -> None:
        assert self._file is not None
        row = {"step": step, "kind": "audit", "time": round(time.time(), 3)}
        append_rows(self._file, [row | sum_counts([counts]) | {"examples": examples}])


def sum_counts(rows: Iterable[Mapping[str, Any]]) -> Totals:
    """The counts of all rows, and the agreement over all their pairs."""
    rows = list(rows)
    names = ("groups", "pairs", "false_merges", "false_splits", "failures", "dropped")
    sums = {name: sum(row.get(name, 0) for row in rows) for name in names}
    pairs = sums["pairs"]
    disagreements = sums["false_merges"] + sums["false_splits"]
    return {
        "groups": sums["groups"],
        "pairs": pairs,
        "agreement": round(1 - disagreements / pairs, 4) if pairs else None,
        "false_merges": sums["false_merges"],
        "false_splits": sums["false_splits"],
        "failures": sums["failures"],
        "dropped": sums["dropped"],
    }


def describe_totals(totals: Totals) -> str:
    """One sentence for the log and the report."""
    agreement = "no pair was compared"
    if totals["agreement"] is not None:
        agreement = (
            f"math-verify agrees with the vote on {100 * totals['agreement']:.1f} % "
            f"of {totals['pairs']:,} pairs of answers"
        )
    return (
        f"audit: {agreement} in {totals['groups']:,} groups; "
        f"false merges {totals['false_merges']:,}, false splits {totals['false_splits']:,}, "
        f"pairs without a verdict {totals['failures']:,}, groups dropped {totals['dropped']:,}"
    )
