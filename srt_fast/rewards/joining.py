"""Joins the rounds of a step, and the turns of its episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from srt_fast.rewards.base import group_index
from srt_fast.transfer import send
from srt_fast.types import Batch, PlayedTurn, Prompts, Reward, Rollouts
from srt_kernels.core.segments import segment_reduce


def concatenate(parts: list[Any]) -> Any:
    """One object from dataclasses of one type, tensors or lists. None if the first part is None.

    Offsets (fields named cu_...) of a part begin where those of the part before end.
    """
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if not is_dataclass(first) or isinstance(first, type):
        return sum(parts, [])
    values = {}
    for field in fields(first):
        members = [getattr(part, field.name) for part in parts]
        are_offsets = field.name.startswith("cu_") and members[0] is not None
        values[field.name] = _concatenate_offsets(members) if are_offsets else concatenate(members)
    return type(first)(**values)


def _concatenate_offsets(parts: list[Tensor]) -> Tensor:
    offsets = parts[0]
    for part in parts[1:]:
        offsets = torch.cat([offsets, offsets[-1] + part[1:]])
    return offsets


def join_rounds(batch: Batch, new: Batch, prompts_per_step: int) -> Batch:
    """Two rounds of sampling as one. Masks what the reward function keeps beyond
    `prompts_per_step` prompts.
    """
    prompts = Prompts(
        problems=batch.prompts.problems + new.prompts.problems,
        token_ids=batch.prompts.token_ids + new.prompts.token_ids,
        dropped=batch.prompts.dropped + new.prompts.dropped,
        position=batch.prompts.position,
    )
    pairs = zip(batch.later_rewards, new.later_rewards, strict=True)
    joined = Batch(
        prompts=prompts,
        rollouts=concatenate([batch.rollouts, new.rollouts]),
        groups=concatenate([batch.groups, new.groups]),
        reward=concatenate([batch.reward, new.reward]),
        rounds=batch.rounds + new.rounds,
        later=_join_later(batch, new),
        later_rewards=[concatenate(list(pair)) for pair in pairs],
    )
    is_kept = prompts_kept(joined)
    is_within = is_kept & (is_kept.cumsum(0) <= prompts_per_step)
    keep = joined.reward.keep & is_within[group_index(joined.groups)]
    places = [torch.tensor(turn.prompts, dtype=torch.int64) for turn in joined.later]
    later_rewards = [
        replace(reward, keep=reward.keep & is_within[prompt])
        for reward, prompt in zip(
            joined.later_rewards, send(places, is_within.device) if places else [], strict=True
        )
    ]
    return replace(joined, reward=replace(joined.reward, keep=keep), later_rewards=later_rewards)


def prompts_kept(batch: Batch) -> Tensor:
    """[P] bool: prompts with at least one rollout of the first turn that trains."""
    return segment_reduce(batch.reward.keep, "max", batch.groups.cu_groups) > 0


def _join_later(batch: Batch, new: Batch) -> list[PlayedTurn]:
    """The later turns of two rounds of sampling, as those of one step."""
    joined = []
    prompts = len(batch.prompts.problems)
    rollouts = len(batch.rollouts.truncated)  # of the turn before
    for first, second in zip(batch.later, new.later, strict=True):
        assert second.groups.parent is not None
        groups = replace(second.groups, parent=second.groups.parent + rollouts)
        joined.append(
            PlayedTurn(
                conversations=first.conversations + second.conversations,
                prompts=first.prompts + [prompts + prompt for prompt in second.prompts],
                parents=first.parents + [rollouts + parent for parent in second.parents],
                rollouts=concatenate([first.rollouts, second.rollouts]),
                groups=concatenate([first.groups, groups]),
                too_long=first.too_long + second.too_long,
            )
        )
        rollouts = len(first.parents)
    return joined


def join_turns(batch: Batch, turn_weights: Sequence[float]) -> tuple[Rollouts, Reward]:
    """What trains: the rollouts and rewards of all turns, the first turn's first.

    turn_weights: factors of the turns' advantages. Empty: 1 each. Raises ValueError if the reward
    function sets the advantages of some turns only.
    """
    if not batch.later:
        return batch.rollouts, batch.reward
    rewards = [batch.reward, *batch.later_rewards]
    sets_advantages = [reward.advantages is not None for reward in rewards]
    if any(sets_advantages) and not all(sets_advantages):
        raise ValueError(
            "reward.kind: expected advantages of every turn or of none, got them of turns "
            f"{[number for number, is_set in enumerate(sets_advantages, 1) if is_set]}"
        )
    groups = [batch.groups, *(turn.groups for turn in batch.later)]
    has_weights = bool(turn_weights) or any(reward.weights is not None for reward in rewards)
    parts: list[Reward] = []
    for number, (reward, turn_groups) in enumerate(zip(rewards, groups, strict=True)):
        weights = reward.weights
        if has_weights:
            weights = torch.ones_like(reward.rewards) if weights is None else weights
            weights = weights * turn_weights[number] if turn_weights else weights
        cu_groups = turn_groups.cu_groups if reward.cu_groups is None else reward.cu_groups
        parts.append(replace(reward, weights=weights, cu_groups=cu_groups, supervised=None))
    rollouts = [batch.rollouts, *(turn.rollouts for turn in batch.later)]
    return concatenate(rollouts), concatenate(parts)


def marked_completions(batch: Batch) -> list[tuple[Rollouts, Tensor]]:
    """The rollouts of the turns in which the reward function marks completions for supervised
    steps, and the marks, [R] bool of each.
    """
    rollouts = [batch.rollouts, *(turn.rollouts for turn in batch.later)]
    rewards = [batch.reward, *batch.later_rewards]
    pairs = zip(rollouts, rewards, strict=True)
    return [(turn, reward.supervised) for turn, reward in pairs if reward.supervised is not None]
