"""A sampler over several ranks: each completes its share of the prompts, all get all rollouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from srt_fast.distributed.world import World
from srt_fast.model.policy import Policy
from srt_fast.sampling.base import (
    Completion,
    LogprobMismatch,
    PendingRollouts,
    Sampler,
    SamplingParams,
    draw_seeds,
    pack_completions,
)
from srt_fast.types import Layout, Rollouts


class RankSampler:
    """See Sampler. Every rank makes one, around a sampler of its own (`local`).

    All methods but `close` are collective. If a rank's sampler fails or meets a signal, all ranks
    raise its error. A prompt's seed is the same for any number of ranks, so its completions are
    too, up to the rounding of the logits.

    ranks_per_sampler: so many neighbouring ranks are one tensor-parallel sampler. They get the same
    prompts.
    """

    def __init__(self, local: Sampler, world: World, ranks_per_sampler: int = 1) -> None:
        self._local: Any = local
        self._world = world
        self._ranks_per_sampler = ranks_per_sampler
        self._samplers = world.size // ranks_per_sampler

    def sample(
        self, prompts: list[list[int]], params: SamplingParams, *, seeds: list[int] | None = None
    ) -> Rollouts:
        """See Sampler.sample."""
        share, share_seeds = self._share(prompts, seeds)
        return self._gather(
            prompts, params, lambda: self._local.sample(share, params, seeds=share_seeds)
        )

    def start(
        self, prompts: list[list[int]], params: SamplingParams, *, seeds: list[int] | None = None
    ) -> PendingRollouts:
        """See VLLMSamplerBase.start."""
        share, share_seeds = self._share(prompts, seeds)
        pending: PendingRollouts = self._agree(
            lambda: self._local.start(share, params, seeds=share_seeds)
        )
        return PendingRollouts(
            wait=lambda interruptible: self._gather(
                prompts, params, lambda: pending.result(interruptible=interruptible)
            ),
            cancel=pending.cancel,
        )

    def sleep(self) -> None:
        """See Sampler.sleep."""
        self._agree(self._local.sleep)

    def sync(self, policy: Policy) -> None:
        """See Sampler.sync."""
        self._agree(lambda: self._local.sync(policy))

    def check(self, policy: Policy, prompts: list[list[int]]) -> LogprobMismatch | None:
        """See Sampler.check. Compares the samplers of all ranks. All ranks get one result."""
        rollouts = self._agree(lambda: self._local.check_rollouts(prompts))
        if rollouts is None:
            return None
        return self._local.compare(policy, self._join(rollouts))

    def close(self) -> None:
        """See Sampler.close."""
        self._local.close()

    def _share(
        self, prompts: list[list[int]], seeds: list[int] | None
    ) -> tuple[list[list[int]], list[int]]:
        """This rank's prompts and their seeds."""
        all_seeds = draw_seeds(len(prompts)) if seeds is None else seeds
        sampler = self._world.rank // self._ranks_per_sampler
        # Never empty: a sampler too many takes the first prompt, since all of them take part in
        # gathering a sharded model's weights.
        places = list(range(sampler, len(prompts), self._samplers)) or [0]
        return [prompts[place] for place in places], [all_seeds[place] for place in places]

    def _gather(
        self, prompts: list[list[int]], params: SamplingParams, sample: Callable[[], Rollouts]
    ) -> Rollouts:
        """The rollouts of all ranks' `sample`, in the order of the prompts."""
        parts = [_split(part) for part in gather_rollouts(self._agree(sample), self._world)]
        completions = []
        for place in range(len(prompts)):
            part = parts[place % self._samplers * self._ranks_per_sampler]
            first = place // self._samplers * params.n
            completions += part[first : first + params.n]
        return pack_completions(completions, prompts, samples=params.n)

    def _join(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts of all ranks, one rank after the other. Each rank has as many a prompt."""
        parts = gather_rollouts(rollouts, self._world)
        completions = [completion for part in parts for completion in _split(part)]
        samples = len(rollouts.truncated) // len(rollouts.prompts)
        return pack_completions(completions, rollouts.prompts * self._world.size, samples=samples)

    def _agree(self, function: Callable[[], Any]) -> Any:
        """function(), or its error on all ranks if it fails on one."""
        result = None
        with self._world.agreement():
            result = function()
        return result


def over_ranks(sampler: Sampler, world: World, ranks_per_sampler: int = 1) -> Sampler:
    """The sampler, or with several ranks a RankSampler around it."""
    return RankSampler(sampler, world, ranks_per_sampler) if world.is_distributed else sampler


def gather_rollouts(rollouts: Rollouts, world: World) -> list[Rollouts]:
    """The rollouts of each rank, on this rank's device. Their `prompts` are this rank's."""
    tokens = world.gather_tensor(rollouts.tokens)
    logprobs = world.gather_tensor(rollouts.logprobs)
    cu_seqlens = world.gather_tensor(rollouts.cu_seqlens)
    cu_groups = world.gather_tensor(rollouts.cu_groups)
    truncated = world.gather_tensor(rollouts.truncated.to(torch.uint8))
    return [
        Rollouts(
            tokens=tokens[rank],
            logprobs=logprobs[rank],
            cu_seqlens=cu_seqlens[rank],
            cu_groups=cu_groups[rank],
            truncated=truncated[rank].bool(),
            prompts=rollouts.prompts,
            layout=Layout.read(cu_seqlens[rank], cu_groups[rank]),
        )
        for rank in range(world.size)
    ]


def _split(rollouts: Rollouts) -> list[Completion]:
    lengths = rollouts.layout.lengths
    rows = zip(
        rollouts.tokens.split(lengths),
        rollouts.logprobs.split(lengths),
        rollouts.truncated.tolist(),
        strict=True,
    )
    return [Completion(tokens, logprobs, truncated) for tokens, logprobs, truncated in rows]
