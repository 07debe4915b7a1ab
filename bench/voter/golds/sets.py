"""The sets of gold answers."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

FILES = {"MATH-500": "math500.jsonl", "AMC": "amc.jsonl", "AIME 2024": "aime24.jsonl"}
CHAMP = Path(__file__).parents[1] / "data" / "champ_golds.jsonl"
GYM = "reasoning-gym"
ROOMS_OF_MATHS = ("algebra", "arithmetic", "geometry", "probability")
LONGEST = 64  # bytes of a reasoning-gym answer
LEFT_OUT = ("composite", "knight_swap", "sokoban")
"""composite has no questions of its own. The other two take seconds for a question."""


class GoldSet(NamedTuple):
    """Gold answers, each once."""

    name: str
    golds: list[str]
    parts: list[str]  # the data sets that they come from
    is_maths: bool  # whether the golds that are no numbers are formulas


def read_sets(data: Path, per_data_set: int, seed: int) -> list[GoldSet]:
    """All sets that are there.

    data: folder of FILES. per_data_set: answers of each of reasoning-gym's data sets; 0: none.
    """
    paths = {name: data / file for name, file in FILES.items()} | {"CHAMP": CHAMP}
    sets = [
        GoldSet(name, _read_golds(path), [path.name], True)
        for name, path in paths.items()
        if path.is_file()
    ]
    if importlib.util.find_spec("reasoning_gym"):
        sets += make_gym_sets(per_data_set, seed) if per_data_set else []
    else:
        print(f"sets of {GYM} skipped: it is not installed", file=sys.stderr)
    return sets


def _read_golds(path: Path) -> list[str]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys(row["answer"] for row in rows))


def make_gym_sets(per_data_set: int, seed: int) -> list[GoldSet]:
    """One set for each room of reasoning-gym, of those data sets whose answers are all short."""
    from reasoning_gym.factory import DATASETS

    golds: dict[str, list[str]] = defaultdict(list)
    parts: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(DATASETS) - set(LEFT_OUT)):
        room = DATASETS[name][0].__module__.split(".")[1]
        answers = short_answers(name, per_data_set, seed)
        golds[room] += answers
        parts[room] += [name] if answers else []
    return [
        GoldSet(f"{GYM}: {room}", list(dict.fromkeys(golds[room])), names, room in ROOMS_OF_MATHS)
        for room, names in sorted(parts.items())
        if names
    ]


def short_answers(name: str, size: int, seed: int) -> list[str]:
    """The answers of a data set. None of them if one is long, has several lines or is no text."""
    import reasoning_gym

    data_set = reasoning_gym.create_dataset(name, size=size, seed=seed)
    answers: list[str] = []
    for index in range(size):
        answer = data_set[index]["answer"]
        if not isinstance(answer, str) or "\n" in answer or not 0 < len(answer.encode()) <= LONGEST:
            return []
        answers.append(answer)
    return answers
