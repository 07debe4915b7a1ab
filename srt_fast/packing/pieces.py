"""Which rollouts are packed together: pieces of groups, and the micro-batches that they fill.

All of it is planned on the host, from the rollouts' layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from srt_fast.distributed.balance import KEYS_PER_TOKEN, split
from srt_fast.distributed.world import World
from srt_fast.types import Rollouts


class Piece(NamedTuple):
    """Rollouts of one prompt that are packed behind it. A rollout alone is one segment."""

    group: int  # place among the step's prompts
    prompt: list[int]  # token ids
    rollouts: list[int]  # places among the step's rollouts, the longest first
    inputs: list[int]  # tokens of each completion without its last one, which predicts nothing

    @property
    def tokens(self) -> int:
        """Tokens that a model computes."""
        return len(self.prompt) + sum(self.inputs)

    @property
    def size(self) -> int:
        """What the piece takes of a token budget."""
        return _size(len(self.prompt), sum(map(bool, self.inputs)), sum(self.inputs))


def plan_micro_batches(
    rollouts: Rollouts,
    indices: Sequence[int],
    token_budget: int,
    world: World,
    *,
    share_prompts: bool,
) -> list[list[list[Piece]]]:
    """The pieces of each micro-batch of each rank: plan[rank][micro_batch].

    A group that is cut repeats its prompt. A group that is not cut may leave ranks idle. So several
    ranks try several cuts, and take the one whose fullest ranks have the least to compute.
    """
    limit = token_budget if share_prompts else None
    pieces = cut_groups(rollouts, indices, limit)
    if not world.is_distributed:
        return [_fill(pieces, token_budget)]
    candidates = [pieces]
    if share_prompts:
        share = sum(piece.size for piece in pieces) // world.size
        limits = [min(token_budget, share // parts) for parts in (1, 2, 4, 8)]
        candidates += [cut_groups(rollouts, indices, limit) for limit in limits]
    plans = [
        _split(pieces, token_budget, world.size, share_prompts=share_prompts)
        for pieces in candidates
    ]
    return min(plans, key=_tokens_to_wait_for)


def count_planned_tokens(plan: Sequence[Sequence[Sequence[Piece]]]) -> int:
    """Tokens that all ranks together compute."""
    return sum(piece.tokens for batches in plan for pieces in batches for piece in pieces)


def cut_groups(rollouts: Rollouts, indices: Sequence[int], limit: int | None = None) -> list[Piece]:
    """The groups, cut between completions into pieces of at most size `limit`, or longer rollouts.

    limit None: each rollout is a piece. Completions without tokens are left out.
    """
    groups = rollouts.layout.groups
    lengths = rollouts.layout.lengths
    members: dict[int, list[int]] = {}
    for rollout in indices:
        if lengths[rollout]:
            members.setdefault(groups[rollout], []).append(rollout)
    pieces = []
    for group, places in members.items():
        prompt = rollouts.prompts[group]
        piece = Piece(group, prompt, [], [])
        total = segments = 0  # tokens of the piece's completions; completions with inputs
        for place in sorted(places, key=lambda place: -lengths[place]):
            inputs = lengths[place] - 1
            size = _size(len(prompt), segments + bool(inputs), total + inputs)
            if piece.rollouts and (limit is None or size > limit):
                pieces.append(piece)
                piece = Piece(group, prompt, [], [])
                total = segments = 0
            piece.rollouts.append(place)
            piece.inputs.append(inputs)
            total += inputs
            segments += bool(inputs)
        pieces.append(piece)
    return pieces


def _size(prompt: int, completions: int, inputs: int) -> int:
    """What completions of `inputs` tokens in all, with their prompt, take of a token budget.

    That is their tokens, or more if they have many keys. completions: those with inputs, which are
    segments of their own.
    """
    tokens = prompt + inputs
    keys = tokens + (prompt * completions if completions > 1 else 0)
    return max(tokens, -(-keys // KEYS_PER_TOKEN))


def _fill(pieces: list[Piece], token_budget: int) -> list[list[Piece]]:
    """Micro-batches of one process: the largest piece goes first, into the first that has room."""
    batches: list[list[Piece]] = []
    sizes: list[int] = []
    for piece in sorted(pieces, key=lambda piece: -piece.size):
        room = (place for place, size in enumerate(sizes) if size + piece.size <= token_budget)
        place = next(room, len(batches))
        if place == len(batches):
            batches.append([])
            sizes.append(0)
        batches[place].append(piece)
        sizes[place] += piece.size
    order = sorted(range(len(batches)), key=lambda place: -sizes[place])
    return [batches[place] for place in order]


def _split(
    pieces: list[Piece], token_budget: int, ranks: int, *, share_prompts: bool
) -> list[list[list[Piece]]]:
    """The pieces of each micro-batch of each rank."""
    places_of_ranks = split([piece.size for piece in pieces], token_budget, ranks)
    plan = [
        [[pieces[place] for place in places] for places in batches] for batches in places_of_ranks
    ]
    return [[_join(pieces) for pieces in batches] for batches in plan] if share_prompts else plan


def _join(pieces: list[Piece]) -> list[Piece]:
    """The same rollouts, with one piece for those of a group."""
    joined: dict[int, Piece] = {}
    for piece in pieces:
        whole = joined.setdefault(piece.group, Piece(piece.group, piece.prompt, [], []))
        whole.rollouts.extend(piece.rollouts)
        whole.inputs.extend(piece.inputs)
    return list(joined.values())


def _tokens_to_wait_for(plan: list[list[list[Piece]]]) -> int:
    """The size of the fullest rank, summed over the micro-batches that ranks compute together."""
    return sum(
        max(sum(piece.size for piece in pieces) for pieces in batches)
        for batches in zip(*plan, strict=True)
    )
