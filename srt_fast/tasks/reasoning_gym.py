"""Any reasoning-gym dataset by name, with its difficulty settings. Generated on the fly, offline."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import random
from functools import cached_property, lru_cache
from typing import Any

from srt_fast.config import TaskConfig
from srt_fast.tasks.scorer_process import ScorerProcess
from srt_fast.tasks.verifiers import make_verifier
from srt_fast.types import Problem

logger = logging.getLogger(__name__)

# Numbers below HELD_OUT_FROM are training problems, the others held out. Most datasets generate problem i from the
# seed + i; acre, gsm_symbolic and list_functions prepare a list of `size` problems up front, and word_ladder allows
# 20,000: so they are made in blocks of BLOCK problems, block b from seed b * BLOCK. numpy takes seeds below 2**32.
HELD_OUT_FROM = 2**31
BLOCK = 4096

# Their generators walk over sets of strings (reasoning-gym 0.1.25), whose order changes with PYTHONHASHSEED.
HASH_ORDERED = {
    "isomorphic_strings",
    "knight_swap",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
}


class GymTask:
    """A reasoning-gym dataset; endless, or its first config.size problems.

    Up to `held_out_count` problems with different prompts are held out; a training problem whose prompt is among them
    is replaced by another one, always the same. Gold is the dataset's own answer; some datasets have none, because
    many answers are right, and need verifier "task".
    """

    has_gold = train_has_gold = True

    def __init__(self, config: TaskConfig, held_out_count: int):
        self.name, self.params = config.name, dict(config.params)
        self.train_size = config.size or None
        self._held_out_count = held_out_count
        _check(self.name, self.params)
        self._block = lru_cache(maxsize=8)(self._make_block)
        if self.name in HASH_ORDERED and os.environ.get("PYTHONHASHSEED", "random") == "random":
            logger.warning(
                "%s generates other problems in every process, so a resumed run differs from an unbroken "
                "one; start Python with PYTHONHASHSEED=0",
                self.name,
            )
        if config.verifier != "task" and self._entry(0)["answer"] is None:
            got = repr(config.verifier)
            raise ValueError(
                f"task.verifier: {self.name} has no single answer: expected 'task', got {got}"
            )
        if config.verifier == "task":
            judge = ScorerProcess(
                "reasoning-gym", self.name, self.params | {"seed": 0, "size": BLOCK}
            )
            self.correct = lambda answer, problem: (
                answer is not None and judge.ask(answer, problem.row)
            )
        else:
            self.correct = make_verifier(config.verifier)

    def train(self, index: int) -> Problem:
        """Training problem `index`."""
        block, place = divmod(index % HELD_OUT_FROM, BLOCK)
        for attempt in range(BLOCK):  # 1009 is prime: the attempts visit the whole block
            entry = self._entry(block * BLOCK + (place + 1009 * attempt) % BLOCK)
            if entry["question"] not in self._set_aside:
                return self._problem(f"{self.name}/{index}", entry)
        raise ValueError(
            f"task.name: expected {self.name} to have other prompts than the {len(self._set_aside)} held-out ones, "
            f"got none in {BLOCK}; lower evaluation.prompts or raise the difficulty in task.params"
        )

    def held_out(self, count: int) -> list[Problem]:
        """Up to `count` held-out problems; never more than were set aside."""
        entries = list(self._set_aside.values())[:count]
        return [
            self._problem(f"{self.name}/held-out/{i}", entry) for i, entry in enumerate(entries)
        ]

    @cached_property
    def _set_aside(self) -> dict[str, dict[str, Any]]:
        """Held-out entries by prompt."""
        entries: dict[str, dict[str, Any]] = {}
        for number in range(HELD_OUT_FROM, HELD_OUT_FROM + 20 * self._held_out_count):
            if len(entries) == self._held_out_count:
                break
            entry = self._entry(number)
            entries.setdefault(entry["question"], entry)
        return entries

    def _entry(self, number: int) -> dict[str, Any]:
        """Entry `number`. A few generators draw from Python's global random numbers: seeded here, and restored."""
        state = random.getstate()
        random.seed(number)
        try:
            return self._block(number // BLOCK)[number % BLOCK]
        finally:
            random.setstate(state)

    def _make_block(self, block: int):
        import reasoning_gym

        return reasoning_gym.create_dataset(
            self.name, seed=block * BLOCK, size=BLOCK, **self.params
        )

    @staticmethod
    def _problem(name: str, entry: dict[str, Any]) -> Problem:
        return Problem(id=name, prompt=entry["question"], gold=entry["answer"], row=entry)


def _check(name: str, params: dict[str, Any]) -> None:
    """A ValueError for a missing package, an unknown name or parameter, or a value that the dataset refuses."""
    try:
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise ValueError(
            f"task.kind: 'reasoning_gym' needs the package reasoning-gym ({error}): pip install 'srt-fast[gym]'"
        ) from error
    if name not in DATASETS:
        close = (
            ", ".join(difflib.get_close_matches(name, DATASETS, n=5, cutoff=0.4))
            or "no name is close to it"
        )
        raise ValueError(
            f"task.name: expected one of {len(DATASETS)} reasoning-gym datasets, got {name!r}; {close}"
        )
    config_class = DATASETS[name][1]
    fields = {
        field.name: field
        for field in dataclasses.fields(config_class)
        if field.name not in ("seed", "size")
    }
    unknown = sorted(params.keys() - fields.keys())
    if unknown:
        raise ValueError(
            f"task.params: {name} knows {', '.join(fields) or 'none'}, got {', '.join(unknown)}"
        )
    for key, value in params.items():
        expected = type(fields[key].default)
        accepted = (int, float) if expected is float else expected
        if expected in (bool, int, float, str) and not isinstance(value, accepted):
            raise ValueError(
                f"task.params: {name} expects {key} of type {expected.__name__}, got {value!r}"
            )
    try:
        config = config_class(**params, seed=0, size=BLOCK)
        if hasattr(config, "validate"):
            config.validate()
    except (AssertionError, TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in params.items()) or "no params"
        raise ValueError(f"task.params: {name} refuses {given}: {error}") from error
