"""Packs rollouts into micro-batches.

Drops rollouts without a gradient, puts those of one prompt behind it, and fills a token budget. A
micro-batch's places go to the device in one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from srt_fast.distributed.world import ONE_PROCESS, World
from srt_fast.packing.pieces import Piece, cut_groups, plan_micro_batches
from srt_fast.transfer import fetch, send
from srt_fast.types import MicroBatch, Rollouts, Segments


class Selection(NamedTuple):
    """Which of a step's R rollouts train."""

    kept: list[bool]  # R, False: masked out of the loss
    active: list[int]  # the rollouts that the training pass needs


def select_rollouts(
    rollouts: Rollouts, advantages: Tensor, keep: Tensor, *, every_row: bool
) -> Selection:
    """The rollouts that train. One host sync.

    advantages [R]; keep [R] bool (False: masked out of the loss). A rollout with advantage 0 has no
    gradient, unless another term of the loss gives one to every token (`every_row`).
    """
    is_active = keep if every_row else keep & (advantages != 0)
    [flags] = fetch(torch.stack([keep, is_active]))
    kept, are_active = flags.tolist()
    places = enumerate(zip(are_active, rollouts.layout.lengths, strict=True))
    return Selection(kept, [place for place, (is_on, length) in places if is_on and length])


def pack(
    rollouts: Rollouts,
    advantages: Tensor,
    indices: Sequence[int],
    token_budget: int,
    world: World = ONE_PROCESS,
    *,
    share_prompts: bool = False,
) -> list[MicroBatch]:
    """This rank's micro-batches, of at most `token_budget` tokens of prompts and completions.

    advantages [R]. indices: the rollouts that are packed. share_prompts: a prompt comes once for
    all of its rollouts in a micro-batch, otherwise once for each. Does not synchronise with the
    device.

    The largest micro-batch comes first. So a batch that does not fit in memory fails at once. A
    group larger than the budget is cut between completions, and its prompt repeats. A rollout
    longer than the budget gets a micro-batch alone.

    All ranks get equally many micro-batches. One without rollouts has a single token and no target.
    """
    plan = plan_micro_batches(rollouts, indices, token_budget, world, share_prompts=share_prompts)
    return pack_plan(rollouts, advantages, plan[world.rank])


def pack_plan(
    rollouts: Rollouts, advantages: Tensor, plan: Sequence[list[Piece]]
) -> list[MicroBatch]:
    """The micro-batches of one rank: plan_micro_batches(...)[rank]. advantages [R]."""
    offsets = torch.tensor(rollouts.layout.offsets)
    return [
        _pack_one(rollouts, advantages, pieces, offsets)
        if pieces
        else _empty(rollouts.tokens.device)
        for pieces in plan
    ]


def count_tokens(rollouts: Rollouts, indices: Sequence[int]) -> int:
    """Tokens of a pass over these rollouts if each has its prompt before it."""
    return sum(piece.tokens for piece in cut_groups(rollouts, indices))


def _pack_one(
    rollouts: Rollouts, advantages: Tensor, pieces: list[Piece], offsets: Tensor
) -> MicroBatch:
    """offsets [R+1] int64: where each completion begins, on the host."""
    layout = _Layout()
    for piece in pieces:
        layout.add(piece)
    rollout_index = torch.tensor([rollout for piece in pieces for rollout in piece.rollouts])
    inputs = torch.tensor([count for piece in pieces for count in piece.inputs])
    starts = offsets[rollout_index]
    parts = [
        layout.prompt_ids(),
        layout.positions(),
        layout.rows.places(),
        layout.completions.places(),
        _ranges(starts, inputs),
        _ranges(starts, inputs + 1),
        rollout_index,
        _offsets(inputs + 1).int(),
        *layout.segment_tensors(),
    ]
    input_ids, position_ids, rows, completions, inputs, tokens, rollout_index, cu_seqlens, *rest = (
        send(parts, rollouts.tokens.device)
    )
    return MicroBatch(
        input_ids=input_ids.index_copy(0, completions, rollouts.tokens[inputs]),
        position_ids=position_ids,
        segments=layout.segments(*rest),
        row_index=rows,
        unique_rows=all(len(piece.rollouts) == 1 for piece in pieces),
        targets=rollouts.tokens[tokens],
        cu_seqlens=cu_seqlens,
        advantages=advantages[rollout_index],
        sampler_logprobs=rollouts.logprobs[tokens],
        rollout_index=rollout_index,
        token_index=tokens,
    )


class _Ranges:
    """Ranges of places, one behind the other."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.lengths: list[int] = []

    def add(self, start: int, length: int) -> None:
        self.starts.append(start)
        self.lengths.append(length)

    def places(self) -> Tensor:
        """[sum of lengths] int64."""
        return _ranges(torch.tensor(self.starts), torch.tensor(self.lengths))


class _Layout:
    """Where the T tokens of a micro-batch lie, on the host: a prompt, then its completions."""

    def __init__(self) -> None:
        self.tokens = 0  # T until now
        self.prompt_tokens: list[int] = []
        self.prompts = _Ranges()  # among the T tokens, as are all that follow
        self.completions = _Ranges()
        self.rows = _Ranges()  # that predict the targets
        self.queries = _Ranges()  # of each segment
        self.keys = _Ranges()
        self.key_lengths: list[int] = []  # of each segment

    def add(self, piece: Piece) -> None:
        start = self.tokens
        width = len(piece.prompt)
        is_shared = len(piece.rollouts) > 1
        self.prompt_tokens += piece.prompt
        self.prompts.add(start, width)
        # A completion that is alone with its prompt has no segment of its own.
        self._add_segment(start, width if is_shared else piece.tokens)
        self.tokens += width
        for count in piece.inputs:
            self.completions.add(self.tokens, count)
            # The prompt's last token predicts the completion's first.
            self.rows.add(start + width - 1, 1)
            self.rows.add(self.tokens, count)
            if is_shared and count:
                self._add_segment(self.tokens, count, prompt=(start, width))
            self.tokens += count

    def _add_segment(self, start: int, length: int, prompt: tuple[int, int] = (0, 0)) -> None:
        self.queries.add(start, length)
        self.keys.add(*prompt)
        self.keys.add(start, length)
        self.key_lengths.append(prompt[1] + length)

    def prompt_ids(self) -> Tensor:
        """[T] int64: token ids of the prompts, 0 at completions."""
        ids = torch.zeros(self.tokens, dtype=torch.int64)
        ids[self.prompts.places()] = torch.tensor(self.prompt_tokens)
        return ids

    def positions(self) -> Tensor:
        """[T] int64. A segment's queries are the last of its keys, and keys count from 0."""
        lengths = torch.tensor(self.queries.lengths)
        return _ranges(torch.tensor(self.key_lengths) - lengths, lengths)

    def segment_tensors(self) -> list[Tensor]:
        """The tensors that `segments` takes: offsets of queries, and if prompts are shared keys."""
        tensors = [_offsets(torch.tensor(self.queries.lengths)).int()]
        if self.key_lengths != self.queries.lengths:
            tensors += [_offsets(torch.tensor(self.key_lengths)).int(), self.keys.places()]
        return tensors

    def segments(
        self, cu_queries: Tensor, cu_keys: Tensor | None = None, key_index: Tensor | None = None
    ) -> Segments:
        return Segments(
            query_lengths=self.queries.lengths,
            key_lengths=self.key_lengths,
            cu_queries=cu_queries,
            cu_keys=cu_queries if cu_keys is None else cu_keys,
            key_index=key_index,
        )


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """[sum of lengths] int64: start, start + 1, ... of each range, one range after the other."""
    places_before = lengths.cumsum(0) - lengths
    shifts = torch.repeat_interleave(starts - places_before, lengths)
    return torch.arange(len(shifts)) + shifts


def _offsets(lengths: Tensor) -> Tensor:
    """[n+1] int64: where each of n parts begins."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _empty(device: torch.device) -> MicroBatch:
    """A micro-batch of one token that is no target: a rank takes part in a pass without work."""
    no_place = torch.zeros(0, dtype=torch.int64, device=device)
    return MicroBatch(
        input_ids=torch.zeros(1, dtype=torch.int64, device=device),
        position_ids=torch.zeros(1, dtype=torch.int64, device=device),
        segments=Segments.of_sequences([1], torch.arange(2, dtype=torch.int32, device=device)),
        row_index=no_place,
        unique_rows=True,
        targets=no_place,
        cu_seqlens=torch.zeros(2, dtype=torch.int32, device=device),
        advantages=torch.zeros(1, device=device),
        sampler_logprobs=torch.zeros(0, device=device),
        rollout_index=torch.zeros(1, dtype=torch.int64, device=device),
        token_index=no_place,
    )
