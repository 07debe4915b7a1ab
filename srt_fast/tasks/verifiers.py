"""Whether an answer agrees with the gold answer: for metrics, and for the feedback "oracle"."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache

from srt_fast.tasks.scorer_process import ScorerProcess
from srt_fast.types import Problem
from srt_kernels.answers.canonical import answer_key

MAX_SCORED_CHARS = 300  # longer answers are compared by their canonical form only

Verifier = Callable[[str | None, Problem], bool]


def make_verifier(kind: str) -> Verifier:
    """The verifier "exact" or "math_verify" ("task" belongs to reasoning-gym, see gym.py)."""
    if kind == "exact":
        return exact
    if kind == "math_verify":
        return MathVerifier()
    raise ValueError(f"task.verifier: expected 'exact' or 'math_verify', got {kind!r}")


def check_math_verify(user: str) -> None:
    """ValueError where math-verify is not installed; it is imported in the judge's process only."""
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError(
            f"{user} needs the package math-verify, which is not installed: pip install 'srt-fast[math]'"
        )


def exact(answer: str | None, problem: Problem) -> bool:
    """Equal canonical forms: "0.50" agrees with the gold answer "\\frac12". No answer agrees with nothing."""
    return answer_key(answer) == answer_key(problem.gold) != 0


class MathVerifier:
    """Equal canonical forms, or else what the package math-verify says (symbolic: "x+1" agrees with "1+x").

    math-verify runs in a process of its own with a hard time limit (judge.py); `judge.failures` counts the pairs that
    got no verdict.
    """

    def __init__(self, limit_s: int = 5):
        check_math_verify("task.verifier: 'math_verify'")
        self.judge = ScorerProcess("math-verify", limit_s=limit_s)
        self._agree = lru_cache(maxsize=1 << 16)(self.judge.ask)

    def __call__(self, answer: str | None, problem: Problem) -> bool:
        if exact(answer, problem):
            return True
        if (
            answer is None
            or problem.gold is None
            or max(len(answer), len(problem.gold)) > MAX_SCORED_CHARS
        ):
            return False
        return self._agree(problem.gold, answer)
