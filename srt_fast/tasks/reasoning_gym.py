"""Any reasoning-gym dataset by name, with its difficulty settings. Generated as needed, offline."""

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
from srt_fast.tasks.verifiers import Verifier, make_verifier
from srt_fast.types import Problem

logger = logging.getLogger(__name__)

# Entries below HELD_OUT_START are for training, the others are held out.
# Most datasets generate problem i from the seed + i. But acre, gsm_symbolic and list_functions
# prepare a list of `size` problems first, and word_ladder allows 20,000. So entries are made in
# blocks: block b has BLOCK entries and the seed b * BLOCK. numpy takes seeds below 2**32.
HELD_OUT_START = 2**31
BLOCK = 4096
STRIDE = 1009  # a prime: from any place, steps of it visit the whole block

# Their generators walk over sets of strings (reasoning-gym 0.1.25). The order of such a set changes
# with PYTHONHASHSEED.
HASH_ORDERED = {
    "isomorphic_strings",
    "knight_swap",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
}

Entry = dict[str, Any]


class GymTask:
    """A reasoning-gym dataset: endless, or its first config.size problems.

    Up to `held_out_count` problems with different prompts are held out. A training problem with one
    of their prompts is replaced by another one, always the same. Gold is the dataset's own answer.
    Some datasets have none, because many answers are right. They need the verifier "task".
    """

    has_gold = True
    train_has_gold = True

    def __init__(self, config: TaskConfig, held_out_count: int) -> None:
        assert config.name is not None
        self.name = config.name
        self.params = dict(config.params)
        self.train_size = config.size or None
        self._held_out_count = held_out_count
        _check(self.name, self.params)
        self._block = lru_cache(maxsize=8)(self._make_block)
        if self.name in HASH_ORDERED and os.environ.get("PYTHONHASHSEED", "random") == "random":
            logger.warning(
                "%s generates other problems in every process, so a resumed run differs from an "
                "unbroken one; start Python with PYTHONHASHSEED=0",
                self.name,
            )
        self.correct = self._make_verifier(config.verifier)

    def train(self, index: int) -> Problem:
        """Training problem `index`. Raises ValueError if its whole block is held out."""
        block, place = divmod(index % HELD_OUT_START, BLOCK)
        for attempt in range(BLOCK):
            entry = self._entry(block * BLOCK + (place + STRIDE * attempt) % BLOCK)
            if entry["question"] not in self._held_out_entries:
                return _problem(f"{self.name}/{index}", entry)
        raise ValueError(
            f"task.name: expected {self.name} to have other prompts than the "
            f"{len(self._held_out_entries)} held-out ones, got none in {BLOCK}; "
            "lower evaluation.prompts or raise the difficulty in task.params"
        )

    def held_out(self, count: int) -> list[Problem]:
        """Up to `count` held-out problems. There are at most `held_out_count`."""
        entries = list(self._held_out_entries.values())[:count]
        return [_problem(f"{self.name}/held-out/{i}", entry) for i, entry in enumerate(entries)]

    def _make_verifier(self, kind: str) -> Verifier:
        if kind != "task":
            if self._entry(0)["answer"] is None:
                raise ValueError(
                    f"task.verifier: expected 'task', because {self.name} has no single answer, "
                    f"got {kind!r}"
                )
            return make_verifier(kind)
        scorer = ScorerProcess("reasoning-gym", self.name, self.params | {"seed": 0, "size": BLOCK})
        return lambda answer, problem: answer is not None and scorer.accepts(answer, problem.row)

    @cached_property
    def _held_out_entries(self) -> dict[str, Entry]:
        """Held-out entries by prompt."""
        entries: dict[str, Entry] = {}
        for number in range(HELD_OUT_START, HELD_OUT_START + 20 * self._held_out_count):
            if len(entries) == self._held_out_count:
                break
            entry = self._entry(number)
            entries.setdefault(entry["question"], entry)
        return entries

    def _entry(self, number: int) -> Entry:
        """Entry `number`.

        A few generators draw from Python's global random generator. It is seeded for the call, and
        restored.
        """
        state = random.getstate()
        random.seed(number)
        try:
            return self._block(number // BLOCK)[number % BLOCK]
        finally:
            random.setstate(state)

    def _make_block(self, block: int) -> Any:
        import reasoning_gym

        return reasoning_gym.create_dataset(
            self.name, seed=block * BLOCK, size=BLOCK, **self.params
        )


def _problem(name: str, entry: Entry) -> Problem:
    return Problem(id=name, prompt=entry["question"], gold=entry["answer"], row=entry)


def _check(name: str, params: dict[str, Any]) -> None:
    """Raise ValueError for a missing package, an unknown name, or params that do not fit."""
    try:
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise ValueError(
            f"task.kind: 'reasoning_gym' needs the package reasoning-gym ({error}): "
            "pip install 'srt-fast[gym]'"
        ) from error
    if name not in DATASETS:
        close_names = difflib.get_close_matches(name, DATASETS, n=5, cutoff=0.4)
        hint = ", ".join(close_names) or "no name is close to it"
        raise ValueError(
            f"task.name: expected one of {len(DATASETS)} reasoning-gym datasets, "
            f"got {name!r}; {hint}"
        )
    _check_params(name, params, DATASETS[name][1])


def _check_params(name: str, params: dict[str, Any], config_class: Any) -> None:
    """Raise ValueError for an unknown param, a wrong type, or a value that the dataset refuses."""
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(config_class)
        if field.name not in ("seed", "size")
    }
    unknown = sorted(params.keys() - defaults.keys())
    if unknown:
        raise ValueError(
            f"task.params: {name} knows {', '.join(defaults) or 'none'}, got {', '.join(unknown)}"
        )
    for key, value in params.items():
        expected = type(defaults[key])
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
        values = ", ".join(f"{key}={value!r}" for key, value in params.items()) or "no params"
        raise ValueError(f"task.params: {name} refuses {values}: {error}") from error
