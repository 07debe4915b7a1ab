"""A scorer in a process of its own, with a hard time limit: model-written answers can hang or break any scorer.

The usual guard, signal.alarm with a handler, fails off the main thread, and a handler does not run while C code
computes 9^9^9. Here the child sets an alarm that nobody handles, so the kernel ends it, and the next question starts a
new child. This file is also the child's program, which is why it imports the standard library only.
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
from typing import Any

logger = logging.getLogger(__name__)

START_LIMIT_S = 120  # importing sympy from a cold network disk
MEMORY_LIMIT = 8 << 30  # bytes of address space


class ScorerProcess:
    """Asks a scorer of the child (SCORERS, with its settings) for verdicts, from any thread.

    A question without a verdict (too slow, out of memory, an exception) is counted in `failures` and logged as a
    warning: the 1st, 2nd, 4th, 8th ... of them, so that a collapsing policy does not flood the log. `unscored` says
    there what the caller makes of it.
    """

    def __init__(
        self,
        scorer: str,
        *settings: Any,
        limit_s: int = 5,
        unscored: str = "counted as wrong",
        program: str = __file__,
    ):
        """program: what the child runs; one with more scorers puts them into SCORERS and calls serve()."""
        self.failures = 0
        self._program = program
        self._unscored = unscored
        self._start_with = (limit_s, scorer, settings)
        self._process: subprocess.Popen | None = None
        self._killed = False
        self._lock = threading.Lock()

    def ask(self, *question: Any) -> bool:
        """The verdict on one question; False where there is none."""
        return self.verdict(*question) is True

    def verdict(self, *question: Any) -> bool | None:
        """The verdict on one question; None where there is none."""
        with self._lock:
            if self._process is None and not self._killed:
                self._start()
            verdict = None if self._killed else self._exchange(self._process, question)
            if self._killed:
                return None
            if verdict is None:
                code = self._process.wait()
                slow = code == -signal.SIGALRM
                verdict = (
                    f"no verdict within {self._start_with[0]} s"
                    if slow
                    else f"the scorer ended with {code}"
                )
                self._process = None
            if isinstance(verdict, bool):
                return verdict
            self.failures += 1
            if self.failures & (self.failures - 1) == 0:
                logger.warning(
                    "%s, not scored (%d so far): %s: %.400r",
                    self._unscored,
                    self.failures,
                    verdict,
                    question,
                )
            return None

    def kill(self) -> None:
        """End the child for good, from any thread; a question under way, or a later one, gets no verdict."""
        self._killed = True
        if process := self._process:
            process.kill()

    def _start(self) -> None:
        """A new child; returns when it has said that its scorer is ready."""
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }  # pools are address space
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([sys.executable, "-P", self._program], env=environment, **pipes)
        weakref.finalize(self, process.kill)
        self._process = process
        ready = self._exchange(process, self._start_with)
        if ready is not True:
            process.kill()
            self._process = None
            raise RuntimeError(
                f"expected the scorer {self._start_with[1]} to start in its own process, got {ready}"
            )

    @staticmethod
    def _exchange(process: subprocess.Popen, message: Any) -> bool | str | None:
        """Send a message and wait for the reply; None if the child ended instead."""
        try:
            pickle.dump(message, process.stdin)
            process.stdin.flush()
        except BrokenPipeError:
            return None
        reply = process.stdout.readline()
        return json.loads(reply) if reply.endswith(b"\n") else None


def _math_verify():
    """Whether math-verify finds gold and answer equal."""
    from math_verify import parse, verify

    def score(gold: str, answer: str) -> bool:
        # math-verify's own time limits are signal handlers: off.
        parsed = [
            parse(f"${text.strip().strip('$')}$", parsing_timeout=None, raise_on_error=True)
            for text in (gold, answer)
        ]
        if not parsed[0]:
            raise ValueError("math-verify cannot parse the gold answer")
        return verify(*parsed, timeout_seconds=None, raise_on_error=True)

    return score


def _reasoning_gym(name: str, params: dict[str, Any]):
    """Whether the dataset's own scorer gives full score; partial credit (knights_knaves gives 0.65) is not correct."""
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(name, **params)
    return lambda answer, entry: dataset.score_answer(answer, entry) >= 1.0


SCORERS = {"math-verify": _math_verify, "reasoning-gym": _reasoning_gym}


def serve() -> None:
    """The child: set up the scorer, then a question in, a verdict or an exception's text out, until end of input."""
    questions, replies, sys.stdout = sys.stdin.buffer, sys.stdout, sys.stderr
    logging.disable()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the trainer, which first finishes its step
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    score, limit_s = None, START_LIMIT_S
    while True:
        try:
            message = pickle.load(questions)
        except EOFError:
            return
        signal.alarm(limit_s)
        try:
            if score is None:
                limit_s, scorer, settings = message
                score, verdict = SCORERS[scorer](*settings), True
            else:
                verdict = bool(score(*message))
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}"[:400]
        signal.alarm(0)
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    serve()
