r"""The embedded task: sums of mixed difficulty. "740+580=" is 47 + 85 = 132.

Operands are zero-padded and begin with the lowest digit. So every pair of digits has the same
distance to the digit of the sum that needs it. A tiny model with rotary positions learns that more
reliably (LOG.md).
"""

from __future__ import annotations

import random
from hashlib import blake2b

from srt_fast.config import TaskConfig
from srt_fast.tasks.verifiers import make_verifier
from srt_fast.types import Problem


class ArithmeticTask:
    """Sums of operands below 10**d, d uniform in 1..max_digits, zero-padded to max_digits.

    A tenth of all operand pairs is held out. It is the same for every seed and for both orders of
    the operands.
    """

    has_gold = True
    train_has_gold = True

    def __init__(self, config: TaskConfig) -> None:
        unknown = sorted(config.params.keys() - {"max_digits"})
        if unknown:
            raise ValueError(f"task.params: expected max_digits only, got {', '.join(unknown)}")
        self.max_digits = config.params.get("max_digits", 3)
        if type(self.max_digits) is not int or not 1 <= self.max_digits <= 100:
            raise ValueError(
                "task.params.max_digits: expected a whole number from 1 to 100, "
                f"got {self.max_digits!r}"
            )
        self.train_size = config.size or None
        self.correct = make_verifier(config.verifier)

    def train(self, index: int) -> Problem:
        """Training sum `index`. Draws until the sum is not held out."""
        rng = random.Random(f"arithmetic/{self.max_digits}/{index}")
        pair = self._draw(rng)
        while _is_held_out(*pair):
            pair = self._draw(rng)
        return self._problem(f"arithmetic/{index}", *pair)

    def held_out(self, count: int) -> list[Problem]:
        """Up to `count` different held-out sums. One digit has about 10 of them."""
        rng = random.Random(f"arithmetic/{self.max_digits}/held-out")
        pairs: dict[tuple[int, int], None] = {}  # a set in the order of the draws
        for _ in range(1000 * count):
            if len(pairs) == count:
                break
            pair = self._draw(rng)
            if _is_held_out(*pair):
                pairs[pair] = None
        return [self._problem(f"arithmetic/held-out/{i}", *pair) for i, pair in enumerate(pairs)]

    def _draw(self, rng: random.Random) -> tuple[int, int]:
        bound = 10 ** rng.randint(1, self.max_digits)
        return rng.randrange(bound), rng.randrange(bound)

    def _problem(self, name: str, first: int, second: int) -> Problem:
        prompt = f"{self._digits(first)}+{self._digits(second)}="
        return Problem(id=name, prompt=prompt, gold=str(first + second))

    def _digits(self, number: int) -> str:
        """The zero-padded number, lowest digit first."""
        return str(number).zfill(self.max_digits)[::-1]


def worked_solution(problem: Problem) -> str:
    r"""What the supervised warm start teaches: the sum's digits, lowest first, then the answer.

    "740+580=" gives "2310\boxed{132}": the zero-padded sum 0132 backwards, because carries go from
    low to high.
    """
    assert problem.gold is not None
    width = problem.prompt.index("+") + 1
    return problem.gold.zfill(width)[::-1] + f"\\boxed{{{problem.gold}}}"


def _is_held_out(first: int, second: int) -> bool:
    pair = f"{min(first, second)}+{max(first, second)}"
    return blake2b(pair.encode(), digest_size=8).digest()[0] * 10 < 256
