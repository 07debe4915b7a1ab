"""Who is asked in a later turn of an episode. On the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from srt_fast.rewards.turns import WRONG, Turn

Item = TypeVar("Item")


def choose(
    turn: Turn, keys: Sequence[int], agrees: Tensor | None, prompts: Sequence[int]
) -> list[list[int]]:
    """The completions that each question of a turn shows, as places in the turn before.

    keys [R], agrees [R] bool in host memory, prompts [R]: answer key (of a problem, the key of its
    text), agreement with the label (for "balanced") and the task's prompt of each completion.
    Random choices draw from torch's generator on the CPU.
    """
    if turn.ask == "balanced":
        assert agrees is not None
        if turn.group == "answer":
            return _choose_anchored(keys, agrees.tolist(), prompts, turn.limit)
        return [[place] for place in _choose_halves(agrees, turn.limit or len(agrees))]
    if turn.ask == "one_per_answer":
        firsts: dict[int, dict[int, int]] = {}
        for place, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
            if key:
                firsts.setdefault(prompt, {}).setdefault(key, place)
        asked = [list(answers.values()) for answers in firsts.values() if len(answers) > 1]
    elif turn.ask == "one_per_prompt":
        asked = [[place] for place in _firsts(prompts)]
    elif turn.ask == "new":
        asked = [[place] for place in _firsts(keys) if keys[place]]
    elif turn.ask == "rejected":
        asked = [[place] for place, key in enumerate(keys) if key == WRONG]
    else:
        asked = [[place] for place in range(len(keys))]
    return _at_most(asked, turn.limit)


def _firsts(values: Sequence[int]) -> list[int]:
    """The place of each value's first occurrence."""
    places: dict[int, int] = {}
    for place, value in enumerate(values):
        places.setdefault(value, place)
    return list(places.values())


def _choose_halves(agrees: Tensor, limit: int) -> list[int]:
    """Random places, at most `limit` of them: half agree, or fewer where one kind is rare."""
    order = torch.randperm(len(agrees))
    agrees_in_order = agrees[order]
    agreeing = order[agrees_in_order].tolist()
    disagreeing = order[~agrees_in_order].tolist()
    quota = max(limit // 2, limit - len(disagreeing))
    return agreeing[:quota] + disagreeing[: limit - min(quota, len(agreeing))]


def _choose_anchored(
    keys: Sequence[int], agrees: Sequence[bool], prompts: Sequence[int], limit: int
) -> list[list[int]]:
    """In each prompt all that agree, and one that has the rarest other answer as often."""
    members: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(place)
    pairs: list[tuple[list[int], int]] = []
    for places in members.values():
        agreeing = [place for place in places if agrees[place]]
        others = [place for place in places if not agrees[place] and keys[place]]
        if agreeing and others:
            votes = Counter(keys[place] for place in others)
            pairs.append((agreeing, min(others, key=lambda place: votes[keys[place]])))
    pairs = _at_most(pairs, limit // 2)
    most = limit // (2 * len(pairs)) if limit and pairs else None
    return [
        [place]
        for agreeing, dissenter in pairs
        for place in agreeing[:most] + [dissenter] * len(agreeing[:most])
    ]


def _at_most(items: list[Item], limit: int) -> list[Item]:
    """A random choice of `limit` items in their order, or all of them. 0: no limit."""
    if not limit or len(items) <= limit:
        return items
    places = torch.randperm(len(items))[:limit].sort().values
    return [items[place] for place in places.tolist()]
