"""A scorer in a process of its own, with a hard time limit.

Answers that a model wrote can hang or break any scorer. The usual guard, signal.alarm with a
handler, fails off the main thread, and a handler does not run while C code computes 9^9^9. Here the
child sets an alarm without a handler, so the kernel ends the child. The next question starts a new
one. This file is also the child's program, so it imports the standard library only.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

START_LIMIT_S = 120
"""Seconds in which the scorer must start: sympy may come from a cold network disk."""
MEMORY_LIMIT = 8 << 30
"""Bytes of address space."""


class ScorerProcess:
    """Scores questions in a child process. May be called from any thread.

    scorer, settings: a name in SCORERS of the child's program, and its arguments. limit_s: seconds
    for one question. failure_note: what the caller makes of a question without a score, for the
    log. program: what the child runs. A program with more scorers adds them to SCORERS and calls
    serve().

    A question has no score if it is too slow, runs out of memory or raises. Such questions are
    counted in `failures`. The 1st, 2nd, 4th, 8th ... is logged as a warning, so that a collapsing
    policy does not flood the log.
    """

    def __init__(
        self,
        scorer: str,
        *settings: Any,
        limit_s: int = 5,
        failure_note: str = "counted as wrong",
        program: str = __file__,
    ) -> None:
        self.failures = 0
        self._program = program
        self._failure_note = failure_note
        self._limit_s = limit_s
        self._scorer = scorer
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._is_killed = False
        self._lock = threading.Lock()

    def accepts(self, *question: Any) -> bool:
        """Whether the scorer accepts the answer. False without a score."""
        return self.score(*question) is True

    def score(self, *question: Any) -> bool | None:
        """Whether the scorer accepts the answer. None without a score.

        Raises RuntimeError if the scorer does not start.
        """
        with self._lock:
            if self._is_killed:
                return None
            process = self._process or self._start()
            reply = _exchange(process, question)
            if self._is_killed:
                return None
            if isinstance(reply, bool):
                return reply
            if reply is None:
                reply = self._reason_of_end(process)
                self._process = None
            self._count_failure(reply, question)
            return None

    def kill(self) -> None:
        """End the child for good, from any thread. Present and later questions get no score."""
        self._is_killed = True
        process = self._process
        if process:
            process.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a child. Returns when its scorer is ready."""
        # Thread pools take address space.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", self._program],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        weakref.finalize(self, process.kill)
        self._process = process  # so that kill() reaches it while it starts
        reply = _exchange(process, (self._limit_s, self._scorer, self._settings))
        if reply is not True:
            process.kill()
            self._process = None
            raise RuntimeError(
                f"expected the scorer {self._scorer} to start in its own process, got {reply}"
            )
        return process

    def _reason_of_end(self, process: subprocess.Popen[bytes]) -> str:
        code = process.wait()
        if code == -signal.SIGALRM:
            return f"no verdict within {self._limit_s} s"
        return f"the scorer ended with {code}"

    def _count_failure(self, reason: str, question: tuple[Any, ...]) -> None:
        self.failures += 1
        is_power_of_two = self.failures & (self.failures - 1) == 0
        if is_power_of_two:
            logger.warning(
                "%s, not scored (%d so far): %s: %.400r",
                self._failure_note,
                self.failures,
                reason,
                question,
            )


def _exchange(process: subprocess.Popen[bytes], message: Any) -> bool | str | None:
    """Send a message and wait for the reply. None if the child ended instead."""
    assert process.stdin is not None and process.stdout is not None
    try:
        pickle.dump(message, process.stdin)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    reply = process.stdout.readline()
    return json.loads(reply) if reply.endswith(b"\n") else None


# ---- the child ----


def _math_verify() -> Callable[..., bool]:
    """Whether math-verify finds gold and answer equal."""
    from math_verify import parse, verify

    def read(text: str) -> list[Any]:
        # math-verify's own time limits are signal handlers. None turns them off, against the type.
        no_limit: Any = None
        return parse(f"${text.strip().strip('$')}$", parsing_timeout=no_limit, raise_on_error=True)

    def score(gold: str, answer: str) -> bool:
        parsed_gold = read(gold)
        parsed_answer = read(answer)
        if not parsed_gold:
            raise ValueError("math-verify cannot parse the gold answer")
        return verify(parsed_gold, parsed_answer, timeout_seconds=None, raise_on_error=True)

    return score


def _reasoning_gym(name: str, params: dict[str, Any]) -> Callable[..., bool]:
    """Whether the dataset's own scorer gives full score.

    Partial credit is not correct (knights_knaves gives 0.65 for half an answer).
    """
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(name, **params)
    return lambda answer, entry: dataset.score_answer(answer, entry) >= 1.0


SCORERS: dict[str, Callable[..., Callable[..., bool]]] = {
    "math-verify": _math_verify,
    "reasoning-gym": _reasoning_gym,
}
"""Functions of the settings that return the scorer, a function of the question."""


def serve() -> None:
    """The child's program: set up the scorer, then answer questions until the end of input.

    The reply to a question is a bool, or an exception's text.
    """
    questions = sys.stdin.buffer
    replies = sys.stdout
    sys.stdout = sys.stderr  # what a scorer prints is no reply
    logging.disable()
    # Ctrl-C is for the trainer, which finishes its step first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    score: Callable[..., bool] | None = None
    limit_s = START_LIMIT_S
    while True:
        try:
            message = pickle.load(questions)
        except EOFError:
            return
        signal.alarm(limit_s)
        reply: bool | str
        try:
            if score is None:
                limit_s, scorer, settings = message
                score = SCORERS[scorer](*settings)
                reply = True
            else:
                reply = bool(score(*message))
        except Exception as error:
            reply = f"{type(error).__name__}: {error}"[:400]
        signal.alarm(0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
