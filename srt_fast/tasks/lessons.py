r"""What the warm start of the embedded model teaches, as texts.

    solve    740+580=                       2310\boxed{132}
    verdict  740+580=2310\boxed{132}?       \boxed{1}, or \boxed{0} of a wrong solution
    redo     740+580=4310\boxed{134}!       2310\boxed{132}
             740+580=4310\boxed{134}?\boxed{0}!

All of them have slips (warm_start.slip): with the default almost half of the solutions that are
shown are wrong, and so are some verdicts and new solutions. So self-training has something to
improve.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import NamedTuple

from srt_fast.tasks.arithmetic import worked_solution
from srt_fast.types import Problem


class Lesson(NamedTuple):
    """A prompt, and the completion that is taught."""

    prompt: str
    completion: str


def make_lesson(problem: Problem, kind: str, rng: random.Random, slip: float) -> Lesson:
    """A lesson about this problem. kind: "solve", "verdict" or "redo". slip: as of with_slips, and
    the chance that a verdict is the wrong one.
    """
    taught = with_slips(problem, rng, slip)
    if kind == "solve":
        return Lesson(problem.prompt, worked_solution(taught))
    shown = with_slips(problem, rng, slip)
    told = problem.prompt + worked_solution(shown)
    if kind == "verdict":
        verdict = (shown.gold == problem.gold) != (rng.random() < slip)
        return Lesson(told + "?", f"\\boxed{{{verdict:d}}}")
    rejection = rng.choice(["", "?\\boxed{0}"])
    return Lesson(f"{told}{rejection}!", worked_solution(taught))


def with_slips(problem: Problem, rng: random.Random, slip: float) -> Problem:
    """The problem with a gold answer in which each column has a random digit with chance `slip`."""
    assert problem.gold is not None
    columns = problem.gold.zfill(problem.prompt.index("+") + 1)
    digits = [str(rng.randrange(10)) if rng.random() < slip else digit for digit in columns]
    return replace(problem, gold=str(int("".join(digits))))
