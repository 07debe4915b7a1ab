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
    if turn.group == "parent":
        return at_most(asked, turn.limit)
    return _whole_prompts(asked, prompts, turn.limit)


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
    """In each prompt all that agree, and one that has the rarest other answer as often.

    At least two of both, because a verdict alone has no baseline: one that agrees is asked twice.
    With a limit as many prompts as have room for that, and the room that is left goes round.
    """
    members: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(place)
    pairs: list[tuple[list[int], int]] = []
    for places in members.values():
        agreeing = [place for place in places if agrees[place]]
        others = [place for place in places if not agrees[place] and keys[place]]
        if agreeing and others:
            votes = Counter(keys[place] for place in others)
            agreeing = agreeing * 2 if len(agreeing) == 1 else agreeing
            pairs.append((agreeing, min(others, key=lambda place: votes[keys[place]])))
    pairs = at_most(pairs, limit // 4)
    counts = _share_out(limit // 2, [len(agreeing) for agreeing, _ in pairs])
    return [
        [place]
        for (agreeing, dissenter), count in zip(pairs, counts, strict=True)
        for place in agreeing[:count] + [dissenter] * count
    ]


def _share_out(room: int, sizes: Sequence[int]) -> list[int]:
    """One at a time to each that has not enough, until there is no room. 0: no limit."""
    if not room:
        return list(sizes)
    counts = [0] * len(sizes)
    while room and counts != list(sizes):
        for place, size in enumerate(sizes):
            if room and counts[place] < size:
                counts[place] += 1
                room -= 1
    return counts


def _whole_prompts(asked: list[list[int]], prompts: Sequence[int], limit: int) -> list[list[int]]:
    """A random choice of prompts with at most `limit` questions, in their order: all questions of
    each prompt, but for the last one.

    So a baseline over a prompt is one over several questions. A single question of a prompt that
    has more is not asked. 0: no limit.
    """
    if not limit or len(asked) <= limit:
        return asked
    of_prompt: dict[int, list[int]] = {}
    for number, shown in enumerate(asked):
        of_prompt.setdefault(prompts[shown[0]], []).append(number)
    order = [list(of_prompt.values())[place] for place in torch.randperm(len(of_prompt)).tolist()]
    numbers: list[int] = []
    for members in order:
        part = members[: limit - len(numbers)]
        if not (numbers and len(part) == 1 < len(members)):
            numbers += part
    return [asked[number] for number in sorted(numbers)]


def at_most(items: list[Item], limit: int) -> list[Item]:
    """A random choice of `limit` items in their order, or all of them. 0: no limit."""
    if not limit or len(items) <= limit:
        return items
    places = torch.randperm(len(items))[:limit].sort().values
    return [items[place] for place in places.tolist()]
