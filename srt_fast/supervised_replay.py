"""Supervised steps between the others, on completions that the vote picks."""

from __future__ import annotations

import torch
from torch import Tensor

from srt_fast.config import CurriculumConfig
from srt_fast.sampling.base import Completion, pack_completions
from srt_fast.transfer import fetch
from srt_fast.types import Groups, Rollouts

MAX_PAIRS = 256
"""Pairs that wait for a supervised step. Older ones are dropped."""

Pair = tuple[list[int], list[int]]  # token ids of a prompt and of its completion


class SupervisedReplay:
    """Collects completions for interleaved supervised steps (ReLIFT, arXiv 2506.07527).

    ReLIFT collects gold solutions of prompts that no rollout solves. Here the completions are the
    majority's own, of prompts whose vote is strong but rare: the policy rarely says what it agrees
    on most. Strong: the majority has at least supervised_lead times the votes of the next answer.
    Rare: its share is at most supervised_share. A reward function of episodes may mark completions
    itself (Reward.supervised).
    """

    def __init__(self, settings: CurriculumConfig) -> None:
        self._settings = settings
        self._pairs: list[Pair] = []

    def collect(self, rollouts: Rollouts, groups: Groups) -> None:
        """Keep the first completion with the majority's answer of each group that qualifies.

        One host sync if there are supervised steps.
        """
        settings = self._settings
        if not settings.supervised_every:
            return
        vote = groups.vote
        votes = groups.cu_groups.diff() * vote.share
        qualifies = votes > 1.5  # at least two rollouts agree
        qualifies &= vote.share <= settings.supervised_share
        qualifies &= vote.share >= settings.supervised_lead * vote.runner_up
        qualifies, rewards, tokens = fetch(qualifies, vote.rewards, rollouts.tokens)
        offsets = rollouts.layout.offsets
        group_bounds = rollouts.layout.group_bounds
        agrees = rewards.tolist()
        for group in qualifies.nonzero()[:, 0].tolist():
            index = agrees.index(1.0, group_bounds[group])
            completion = tokens[offsets[index] : offsets[index + 1]].tolist()
            self._pairs.append((rollouts.prompts[group], completion))
        self._pairs = self._pairs[-MAX_PAIRS:]

    def collect_marked(self, rollouts: Rollouts, marks: Tensor) -> None:
        """Keep the completions that a reward function marks. marks [R] bool.

        One host sync if there are supervised steps.
        """
        if not self._settings.supervised_every:
            return
        tokens, marks = fetch(rollouts.tokens, marks)
        offsets = rollouts.layout.offsets
        groups = rollouts.layout.groups
        for index in marks.nonzero()[:, 0].tolist():
            completion = tokens[offsets[index] : offsets[index + 1]].tolist()
            self._pairs.append((rollouts.prompts[groups[index]], completion))
        self._pairs = self._pairs[-MAX_PAIRS:]

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


def pack_pairs(pairs: list[Pair], device: torch.device) -> Rollouts:
    """Prompts with one completion each, as rollouts without log-probs."""
    completions = []
    for _, token_ids in pairs:
        tokens = torch.tensor(token_ids)
        zeros = torch.zeros(len(token_ids))
        completions.append(Completion(tokens=tokens, logprobs=zeros, truncated=False))
    return pack_completions(completions, [prompt for prompt, _ in pairs], samples=1, device=device)
