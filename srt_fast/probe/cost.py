"""What a step costs: a measured sampling and training pass, and a step scaled from them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from srt_fast.config import Config
from srt_fast.learner import Learner
from srt_fast.model.policy import Policy
from srt_fast.types import Layout, Reward, Rollouts
from srt_kernels import Vote


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a pass took, as measured."""

    completions: int  # training: of the groups that train, whichever of them the loss takes
    tokens: int  # sampling: of completions; training: of prompts too
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """A step of other sizes, scaled from measured passes by the number of completions."""

    sampled_completions: int  # with those of a teacher
    sampled_tokens: int
    trained_completions: int
    trained_tokens: int
    seconds_sample: float
    seconds_train: float


def first_groups(rollouts: Rollouts, count: int) -> Rollouts:
    """The rollouts of the first `count` prompts, or all of them if there are fewer."""
    group_sizes = rollouts.layout.group_sizes[:count]
    lengths = rollouts.layout.lengths[: sum(group_sizes)]
    tokens = sum(lengths)
    return Rollouts(
        tokens=rollouts.tokens[:tokens],
        cu_seqlens=rollouts.cu_seqlens[: len(lengths) + 1],
        cu_groups=rollouts.cu_groups[: len(group_sizes) + 1],
        logprobs=rollouts.logprobs[:tokens],
        truncated=rollouts.truncated[: len(lengths)],
        prompts=rollouts.prompts[: len(group_sizes)],
        layout=Layout(lengths=lengths, group_sizes=group_sizes),
    )


def measure_training(
    config: Config, policy: Policy, rollouts: Rollouts, vote: Vote, check: Callable[[], None]
) -> Cost | None:
    """One training step on these rollouts by the vote's reward: packing to the weights' update.

    Changes the policy. Groups without a gradient are dropped, as in a run. A KL term takes the
    policy for its reference. vote: over the rollouts, on the policy's device. Returns None if no
    group has a gradient. Raises RunInterrupted as check does.
    """
    truncated = rollouts.truncated
    keep = ~truncated if config.reward.truncated == "mask" else torch.ones_like(truncated)
    learner = Learner(config, policy, policy, check)
    tokens = 0
    groups: set[int] = set()
    start = time.perf_counter()
    for minibatch in learner.pack(rollouts, Reward(rewards=vote.rewards, keep=keep)):
        for batch in minibatch:
            learner.loss(batch).backward()
            groups |= {rollouts.layout.groups[place] for place in batch.rollout_index.tolist()}
            tokens += len(batch.input_ids)
        learner.step({})
    if policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)
    seconds = time.perf_counter() - start
    completions = sum(rollouts.layout.group_sizes[group] for group in groups)
    return Cost(completions=completions, tokens=tokens, seconds=seconds) if completions else None


def scale_to_step(
    sampling: Cost,
    training: Cost,
    *,
    prompts: int,
    group_size: int,
    taught: float,
    mixed: float,
) -> StepCost:
    """The cost of a step of `prompts` groups.

    Proportional to the completions: in training to those of groups with a gradient, of which
    `mixed` is the fraction. taught: the fraction of the prompts that a teacher samples too.
    """
    sampled = round(prompts * group_size * (1 + taught))
    trained = round(prompts * group_size * mixed)
    sampled_part = sampled / sampling.completions
    trained_part = trained / training.completions
    return StepCost(
        sampled_completions=sampled,
        sampled_tokens=round(sampling.tokens * sampled_part),
        trained_completions=trained,
        trained_tokens=round(training.tokens * trained_part),
        seconds_sample=sampling.seconds * sampled_part,
        seconds_train=training.seconds * trained_part,
    )
