"""TODO."""

from __future__ import annotations

import torch

from srt_fast.config import CurriculumConfig
from srt_fast.types import Groups, Rollouts

MOST = 256  # completions that wait for a supervised step; older ones go first


class SupervisedReplay:
    """Collects completions for interleaved supervised steps (ReLIFT, arXiv 2506.07527, whose collected solutions are gold ones
    to prompts that no rollout solves).

    Here they are the majority's own completions of prompts whose vote is strong (at least supervised_lead times the next
    answer's) but rare (a share of at most supervised_share): the policy rarely says what it agrees on most.
    """

    def __init__(self, settings: CurriculumConfig):
        self._settings = settings
        self._waiting: list[tuple[list[int], list[int]]] = []  # prompt and completion

    def collect(self, rollouts: Rollouts, groups: Groups) -> None:
        """One completion of each group whose vote is so: the first that gave the majority's answer."""
        settings, vote = self._settings, groups.vote
        if not settings.supervised_every:
            return
        chosen = (groups.cu_groups.diff() * vote.share > 1.5) & (
            vote.share <= settings.supervised_share
        )  # two agree at least
        chosen &= vote.share >= settings.supervised_lead * vote.runner_up
        offsets, bounds, agrees = (
            rollouts.cu_seqlens.tolist(),
            groups.cu_groups.tolist(),
            vote.rewards.tolist(),
        )
        for group in chosen.nonzero()[:, 0].tolist():
            index = agrees.index(1.0, bounds[group])
            self._waiting.append(
                (
                    rollouts.prompts[group],
                    rollouts.tokens[offsets[index] : offsets[index + 1]].tolist(),
                )
            )
        self._waiting = self._waiting[-MOST:]

    def take(self, step: int) -> list[tuple[list[int], list[int]]]:
        """What is to be supervised after this step; nothing where no supervised step is due."""
        every = self._settings.supervised_every
        if not every or step % every:
            return []
        taken, self._waiting = self._waiting, []
        return taken

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting = []

    def state_dict(self) -> list:
        return list(self._waiting)

    def load_state_dict(self, state: list) -> None:
        self._waiting = list(state)


def as_rollouts(pairs: list[tuple[list[int], list[int]]], device: torch.device) -> Rollouts:
    """Prompts and completions as rollouts of one completion each, without log-probs."""
    from srt_fast.sampling.base import Completion, pack_completions

    completions = [torch.tensor(completion, device=device) for _, completion in pairs]
    return pack_completions(
        [Completion(c, torch.zeros(len(c), device=device), truncated=False) for c in completions],
        [prompt for prompt, _ in pairs],
        samples=1,
    )
