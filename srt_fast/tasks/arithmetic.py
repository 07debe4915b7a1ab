r"""The embedded task: sums of mixed difficulty, operands zero-padded and lowest digit first: "740+580=" is 47 + 85 = 132.

Lowest digit first puts every pair of digits at the same distance from the digit of the sum that needs them, which a
tiny model with rotary positions learns more surely (LOG.md).
"""

from __future__ import annotations

import random
from hashlib import blake2b

from srt_fast.config import TaskConfig
from srt_fast.tasks.verifiers import make_verifier
from srt_fast.types import Problem


class ArithmeticTask:
    """Sums of operands below 10**d, d uniform in 1..max_digits, zero-padded to max_digits.

    A tenth of all operand pairs is held out, the same for every seed and with the operands in either order.
    """

    has_gold = train_has_gold = True

    def __init__(self, config: TaskConfig):
        unknown = sorted(config.params.keys() - {"max_digits"})
        if unknown:
            raise ValueError(
                f"task.params: arithmetic knows max_digits only, got {', '.join(unknown)}"
            )
        self.max_digits = config.params.get("max_digits", 3)
        if type(self.max_digits) is not int or not 1 <= self.max_digits <= 100:
            raise ValueError(
                f"task.params.max_digits: expected a whole number from 1 to 100, got {self.max_digits!r}"
            )
        self.train_size = config.size or None
        self.correct = make_verifier(config.verifier)

    def train(self, index: int) -> Problem:
        """Training sum `index`, drawn anew until it is none of the held-out ones."""
        rng = random.Random(f"arithmetic/{self.max_digits}/{index}")
        pair = self._draw(rng)
        while _is_held_out(*pair):
            pair = self._draw(rng)
        return self._problem(f"arithmetic/{index}", *pair)

    def held_out(self, count: int) -> list[Problem]:
        """Up to `count` different held-out sums; fewer where max_digits has fewer (10 or so for one digit)."""
        rng = random.Random(f"arithmetic/{self.max_digits}/held-out")
        pairs: dict[tuple[int, int], None] = {}
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

    def _problem(self, name: str, a: int, b: int) -> Problem:
        left, right = (str(number).zfill(self.max_digits)[::-1] for number in (a, b))
        return Problem(id=name, prompt=f"{left}+{right}=", gold=str(a + b))


def _is_held_out(a: int, b: int) -> bool:
    return blake2b(f"{min(a, b)}+{max(a, b)}".encode(), digest_size=8).digest()[0] * 10 < 256


def worked_solution(problem: Problem) -> str:
    r"""What the supervised warm start teaches: the sum's digits, lowest first, then the answer.

    "740+580=" gives "2310\boxed{132}": the zero-padded sum 0132 backwards, since carries run from low to high.
    """
    width = problem.prompt.index("+") + 1
    return problem.gold.zfill(width)[::-1] + f"\\boxed{{{problem.gold}}}"
