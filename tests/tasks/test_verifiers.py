"""Comparison with gold: by canonical form, and by math-verify in a process of its own."""

import threading

from srt_fast.tasks.verifiers import MathVerifier, exact_match
from srt_fast.types import Problem


def problem_of(gold: str | None) -> Problem:
    return Problem(id="", prompt="", gold=gold)


def test_exact_match_compares_canonical_forms():
    half = problem_of(r"\frac{1}{2}")
    assert exact_match("0.50", half)
    assert not exact_match("2", half)
    assert not exact_match(None, half)
    assert not exact_match(None, problem_of(None))
    assert not exact_match("$ $", problem_of("$ $"))


def test_math_verify_works_off_the_main_thread_and_survives_a_hang(caplog):
    verifier = MathVerifier(limit_s=3)
    expected = {
        ("x+1", "1+x"): True,
        ("x+1", "x+2"): False,
        (r"\frac12", "0.5"): True,
        ("5", r"9^{9^{9^{9}}}"): False,  # hangs
        ("2", r"\sqrt{4}"): True,
    }
    verdicts = {}

    def verify() -> None:
        for gold, answer in expected:
            verdicts[gold, answer] = verifier(answer, problem_of(gold))

    thread = threading.Thread(target=verify)
    thread.start()
    thread.join()
    assert verdicts == expected
    assert verifier.scorer.failures == 1
    assert "not scored (1 so far): no verdict within 3 s" in caplog.text
