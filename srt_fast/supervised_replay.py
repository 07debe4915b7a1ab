"""Supervised steps between the others, on completions that the policy itself picks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srt_fast.config import CurriculumConfig
from srt_fast.rewards.base import sums_by
from srt_fast.rewards.choice import at_most
from srt_fast.rewards.turns import CORRECT
from srt_fast.sampling.base import Completion, pack_completions
from srt_fast.transfer import fetch
from srt_fast.types import Groups, Rollouts
from srt_kernels.core.segments import segment_ids, segment_reduce

MAX_PAIRS = 256
"""Pairs that wait for a supervised step. Of a step with more a random choice waits, of all its
turns. Older ones are dropped.
"""

Pair = tuple[list[int], list[int]]  # token ids of a prompt and of its completion


class SupervisedReplay:
    """Collects completions for interleaved supervised steps (ReLIFT, arXiv 2506.07527).

    ReLIFT collects gold solutions of prompts that no rollout solves. Here the completions are the
    majority's own, of prompts whose vote is strong but rare: the policy rarely says what it agrees
    on most. Strong: the majority has at least supervised_lead times the votes of the next answer.
    Rare: its share is at most supervised_share. A reward function of episodes may mark completions
    itself (Reward.supervised).

    With supervised_pick "likeliest" it is SFT-Sharpening (arXiv 2412.01951): the completion of each
    prompt that the policy itself finds likeliest, whatever the vote says. With "accepted" it is the
    best of n by the policy's own verdicts, as in the supervised stages of ReVISE (2502.14565).
    """

    def __init__(self, settings: CurriculumConfig) -> None:
        self._settings = settings
        self._pairs: list[Pair] = []

    def collect(self, rollouts: Rollouts, groups: Groups, verdicts: Groups | None = None) -> None:
        """Keep the first completion that is picked of each group that qualifies.

        verdicts: the turn that judges these completions, for "accepted". One host sync if there are
        supervised steps.
        """
        settings = self._settings
        if not settings.supervised_every:
            return
        if settings.supervised_pick == "majority":
            qualifies, is_picked = self._majority(groups)
        elif settings.supervised_pick == "likeliest":
            qualifies, is_picked = _likeliest(rollouts)
        else:
            assert verdicts is not None
            qualifies, is_picked = _accepted(groups, verdicts)
        qualifies, is_picked, tokens = fetch(qualifies, is_picked, rollouts.tokens)
        group_bounds = rollouts.layout.group_bounds
        picked = is_picked.tolist()
        places = [
            picked.index(True, group_bounds[group]) for group in qualifies.nonzero()[:, 0].tolist()
        ]
        self._keep(_pairs_at(rollouts, tokens, places))

    def _majority(self, groups: Groups) -> tuple[Tensor, Tensor]:
        """[P] bool: the vote is strong but rare. [R] bool: the rollout agrees with the majority."""
        settings = self._settings
        vote = groups.vote
        votes = groups.cu_groups.diff() * vote.share
        qualifies = votes > 1.5  # at least two rollouts agree
        qualifies &= vote.share <= settings.supervised_share
        qualifies &= vote.share >= settings.supervised_lead * vote.runner_up
        return qualifies, vote.rewards.bool()

    def collect_marked(self, turns: Sequence[tuple[Rollouts, Tensor]]) -> None:
        """Keep the completions that a reward function marks: marks [R] bool of each turn.

        One host sync for each turn if there are supervised steps.
        """
        if not self._settings.supervised_every:
            return
        pairs = []
        for rollouts, marks in turns:
            tokens, marks = fetch(rollouts.tokens, marks)
            pairs += _pairs_at(rollouts, tokens, marks.nonzero()[:, 0].tolist())
        self._keep(pairs)

    def _keep(self, pairs: list[Pair]) -> None:
        self._pairs = (self._pairs + at_most(pairs, MAX_PAIRS))[-MAX_PAIRS:]

    def take(self, step: int) -> list[Pair]:
        """The pairs of the supervised step after this step. Empty if none is due."""
        every = self._settings.supervised_every
        if not every or step % every:
            return []
        pairs = self._pairs
        self._pairs = []
        return pairs

    def clear(self) -> None:
        """Drop the pairs."""
        self._pairs = []

    def state_dict(self) -> list[Pair]:
        return list(self._pairs)

    def load_state_dict(self, state: list[Pair]) -> None:
        self._pairs = list(state)


def _pairs_at(rollouts: Rollouts, tokens: Tensor, places: list[int]) -> list[Pair]:
    """The completions at these places with their prompts. tokens [N] in host memory."""
    offsets = rollouts.layout.offsets
    groups = rollouts.layout.groups
    return [
        (rollouts.prompts[groups[place]], tokens[offsets[place] : offsets[place + 1]].tolist())
        for place in places
    ]


def _likeliest(rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """[P] bool, all True. [R] bool: none of the group is likelier, by the sampler's log-probs."""
    logprobs = segment_reduce(rollouts.logprobs, "sum", rollouts.cu_seqlens)
    highest, is_highest = _highest(logprobs, rollouts.cu_groups)
    return torch.ones_like(highest, dtype=torch.bool), is_highest


def _accepted(groups: Groups, verdicts: Groups) -> tuple[Tensor, Tensor]:
    """[P] bool: some completion is accepted by half of its verdicts. [R] bool: none is accepted by
    more of them.
    """
    assert verdicts.parent is not None
    is_accepted = (verdicts.keys == CORRECT).double()
    accepts = sums_by(verdicts.parent, is_accepted, len(groups.keys))
    asked = sums_by(verdicts.parent, torch.ones_like(is_accepted), len(groups.keys))
    highest, is_highest = _highest(accepts / asked.clamp_min(1), groups.cu_groups)
    return highest >= 0.5, is_highest


def _highest(values: Tensor, cu_groups: Tensor) -> tuple[Tensor, Tensor]:
    """[P]: the highest of values [R] in each group. [R] bool: whose value that is."""
    highest = segment_reduce(values, "max", cu_groups, initial=-float("inf"))
    return highest, values == highest[segment_ids(cu_groups, len(values))]


def pack_pairs(pairs: list[Pair], device: torch.device) -> Rollouts:
    """Prompts with one completion each, as rollouts without log-probs."""
    completions = []
    for _, token_ids in pairs:
        tokens = torch.tensor(token_ids)
        zeros = torch.zeros(len(token_ids))
        completions.append(Completion(tokens=tokens, logprobs=zeros, truncated=False))
    return pack_completions(completions, [prompt for prompt, _ in pairs], samples=1, device=device)
