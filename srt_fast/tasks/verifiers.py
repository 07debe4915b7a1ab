"""Whether an answer agrees with the gold answer: for metrics, and for reward.kind "oracle"."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache

from srt_fast.tasks.scorer_process import ScorerProcess
from srt_fast.types import Problem
from srt_kernels.answers.canonical import answer_key

MAX_SCORED_CHARS = 300
"""Longer answers are compared by their canonical forms only."""

Verifier = Callable[[str | None, Problem], bool]


def make_verifier(kind: str) -> Verifier:
    """The verifier "exact" or "math_verify". The verifier "task" is in tasks/reasoning_gym.py."""
    if kind == "exact":
        return exact_match
    if kind == "math_verify":
        return MathVerifier()
    raise ValueError(f"task.verifier: expected 'exact' or 'math_verify', got {kind!r}")


def check_math_verify(user: str) -> None:
    """Raise ValueError if math-verify is not installed. Only the scorer's process imports it."""
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError(
            f"{user} needs the package math-verify, which is not installed: "
            "pip install 'srt-fast[math]'"
        )


def exact_match(answer: str | None, problem: Problem) -> bool:
    """Whether the canonical forms are equal: "0.50" agrees with the gold answer "\\frac12".

    False without an answer.
    """
    return answer_key(answer) == answer_key(problem.gold) != 0


class MathVerifier:
    """Equal canonical forms, or else what the package math-verify says.

    math-verify compares symbolically: "x+1" agrees with "1+x". It runs in a process of its own with
    a hard time limit. `scorer.failures` counts the pairs that it could not compare.
    """

    def __init__(self, limit_s: int = 5) -> None:
        check_math_verify("task.verifier: 'math_verify'")
        self.scorer = ScorerProcess("math-verify", limit_s=limit_s)
        self._agree = lru_cache(maxsize=1 << 16)(self.scorer.accepts)

    def __call__(self, answer: str | None, problem: Problem) -> bool:
        if exact_match(answer, problem):
            return True
        if answer is None or problem.gold is None:
            return False
        if max(len(answer), len(problem.gold)) > MAX_SCORED_CHARS:
            return False
        return self._agree(problem.gold, answer)
