"""What a sampler is to the trainer, and how completions are packed into rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from srt_fast.config import SamplingConfig
from srt_fast.model.policy import Policy
from srt_fast.transfer import send
from srt_fast.types import Layout, Rollouts


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How completions are drawn. The names are those of vllm.SamplingParams."""

    n: int = 1
    """Completions of each prompt."""
    temperature: float = 1.0
    """What logits are divided by. 0 is greedy decoding."""
    max_tokens: int
    """Longest completion, in tokens."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this much probability. 1 is off."""
    top_k: int = 0
    """Sample from the k likeliest tokens. 0 is off."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the likeliest one. 0 is off."""

    @classmethod
    def of_training(cls, sampling: SamplingConfig, *, n: int | None = None) -> SamplingParams:
        """How a run samples for training. n: completions of each prompt. None: group_size."""
        return cls(
            n=sampling.group_size if n is None else n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
        )


class SamplerError(RuntimeError):
    """The sampler failed. The run can be resumed.

    The engine died, ran out of memory or hangs, or it does not compute the trainer's log-probs.
    """


@dataclass(frozen=True, kw_only=True)
class LogprobMismatch:
    """How far the trainer's log-probs are from the sampler's on the same tokens, in nats."""

    max: float
    """Largest absolute difference."""
    mean: float
    """Mean absolute difference."""
    tokens: int
    """Number of tokens that were compared."""
    max_bar: float
    """Largest `max` that passes. inf: no bar."""
    mean_bar: float
    """Largest `mean` that passes. inf: no bar."""
    cause: str | None = None
    """A short diagnosis. None: the check passed."""

    def is_within_bars(self) -> bool:
        """Whether both differences pass. NaN does not pass."""
        return self.max <= self.max_bar and self.mean <= self.mean_bar

    def raise_for_cause(self) -> None:
        """Raise SamplerError if the check found a cause."""
        if self.cause is None:
            return
        bars = {"largest": self.max_bar, "mean": self.mean_bar}
        finite_bars = [f"{name} {bar:g}" for name, bar in bars.items() if bar < math.inf]
        raise SamplerError(
            f"the sampler's log-probs are not the trainer's: over {self.tokens} tokens the largest "
            f"mismatch is {self.max:.3g} nats, the mean {self.mean:.3g} "
            f"(bars: {', '.join(finite_bars)}). It looks like {self.cause}"
        )


@dataclass(frozen=True, kw_only=True)
class PendingRollouts:
    """Rollouts that are being sampled."""

    wait: Callable[[bool], Rollouts]
    """Waits for the rollouts. The argument says whether a signal may end the wait."""
    cancel: Callable[[], None]
    """Gives the rollouts up. The engine is idle afterwards."""

    def result(self, *, interruptible: bool = False) -> Rollouts:
        """Wait for the rollouts. A signal ends the wait only with `interruptible`."""
        return self.wait(interruptible)


class Sampler(Protocol):
    """Token ids in, packed completions with their log-probs out.

    Raises SamplerError if the engine fails.
    """

    def sample(
        self, prompts: list[list[int]], params: SamplingParams, *, seeds: list[int] | None = None
    ) -> Rollouts:
        """`params.n` completions of each prompt, with the log-prob of each token.

        seeds: one for each prompt, which decides its completions. None: draw_seeds(len(prompts)).

        Log-probs are those of the distribution that was sampled from: with temperature, top_p,
        top_k and min_p. With temperature 0 they are those at temperature 1.
        """
        ...

    def sleep(self) -> None:
        """Free the memory that the next `sync` can fill again. Call `sync` before `sample`."""

    def sync(self, policy: Policy) -> None:
        """Take the policy's present weights. Every later sample comes from them."""

    def check(self, policy: Policy, prompts: list[list[int]]) -> LogprobMismatch | None:
        """Compare log-probs with the policy's, on completions of these prompts.

        Returns None if sampler and policy are the same model.
        """
        ...

    def close(self) -> None:
        """Release what the sampler holds. No method may be called afterwards."""


def draw_seeds(count: int) -> list[int]:
    """Seeds of `count` prompts, from torch's generator on the CPU: runs repeat and resume.

    A seed belongs to its prompt. So completions do not depend on how prompts are batched, up to the
    rounding of the logits.
    """
    return torch.randint(2**31, (count,)).tolist()


class Completion(NamedTuple):
    """A completion of n tokens."""

    tokens: Tensor  # [n] int64, end-of-sequence token included
    logprobs: Tensor  # [n] fp32, the sampler's
    truncated: bool  # it reached max_tokens without an end-of-sequence token


def pack_completions(
    completions: Sequence[Completion],
    prompts: list[list[int]],
    *,
    samples: int,
    device: torch.device | None = None,
) -> Rollouts:
    """Pack completions into rollouts.

    completions: `samples` of each prompt, in the order of the prompts; at least one.
    device: where the rollouts go. None: where the completions are. Nobody waits for the copies.
    """
    tokens = torch.cat([completion.tokens for completion in completions])
    logprobs = torch.cat([completion.logprobs for completion in completions])
    layout = Layout(
        lengths=[len(completion.tokens) for completion in completions],
        group_sizes=[samples] * (len(completions) // samples),
    )
    device = device or tokens.device
    if tokens.device != device:
        tokens, logprobs = send([tokens, logprobs], device)
    host_tensors = [
        torch.tensor(layout.offsets, dtype=torch.int32),
        torch.tensor(layout.group_bounds, dtype=torch.int32),
        torch.tensor([completion.truncated for completion in completions]),
    ]
    cu_seqlens, cu_groups, truncated = send(host_tensors, device)
    return Rollouts(
        tokens=tokens,
        logprobs=logprobs,
        prompts=prompts,
        cu_seqlens=cu_seqlens,
        cu_groups=cu_groups,
        truncated=truncated,
        layout=layout,
    )


def no_rollouts(device: torch.device) -> Rollouts:
    """Rollouts of no prompt."""
    return Rollouts(
        tokens=torch.zeros(0, dtype=torch.int64, device=device),
        logprobs=torch.zeros(0, device=device),
        cu_seqlens=torch.zeros(1, dtype=torch.int32, device=device),
        cu_groups=torch.zeros(1, dtype=torch.int32, device=device),
        truncated=torch.zeros(0, dtype=torch.bool, device=device),
        prompts=[],
        layout=Layout(lengths=[], group_sizes=[]),
    )


def rollout_tensors(rollouts: Rollouts) -> dict[str, Tensor]:
    """The tensors of rollouts by their names, for a checkpoint."""
    values = {field.name: getattr(rollouts, field.name) for field in fields(rollouts)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def restore_rollouts(
    tensors: dict[str, Tensor], prompts: list[list[int]], device: torch.device
) -> Rollouts:
    """The inverse of rollout_tensors: rollouts of `prompts` on `device`."""
    layout = Layout.read(tensors["cu_seqlens"], tensors["cu_groups"])
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Rollouts(**tensors, prompts=prompts, layout=layout)


def stop_tokens(policy: Policy) -> list[int]:
    """End-of-sequence ids: the tokenizer's, then the generation config's.

    The generation config of a chat model adds its end of turn.
    """
    ids = getattr(policy.model.generation_config, "eos_token_id", None)
    if ids is None:
        ids = []
    elif not isinstance(ids, list):
        ids = [ids]
    return cast(list[int], list(dict.fromkeys([policy.tokenizer.eos_token_id, *ids])))
