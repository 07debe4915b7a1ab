"""Models beside the policy that answer its prompts too: the starting model, and a moving average of the policy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.model.policy import Policy
from srt_fast.sampling import Sampler
from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.hf import HFSampler
from srt_kernels.answers.reader import AnswerReader


class Teacher:
    """A model of the policy's architecture, never trained. With vLLM it borrows the policy's engine: two more weight syncs a
    step instead of a second engine."""

    def __init__(
        self,
        config: Config,
        model: Policy,
        policy: Policy,
        sampler: Sampler,
        reader: AnswerReader,
        check: Callable[[], None],
    ):
        self._config, self._model, self._policy, self._reader = config, model, policy, reader
        self._engine = sampler
        self._own = (
            HFSampler(model, config.sampling.max_sequences, check)
            if config.sampling.engine == "hf"
            else None
        )

    def answers(self, prompts: list[list[int]], samples: int) -> tuple[Tensor, Tensor]:
        """Keys [R'] of `samples` completions of each prompt (0: sampling.group_size), and [P+1] which are whose; a cut
        completion votes as the policy's own do."""
        sampling = self._config.sampling
        with self._sampler() as sampler:
            params = SamplingParams.of_training(sampling, n=samples or sampling.group_size)
            rollouts = sampler.sample(prompts, params)
        keys = self._reader.keys(rollouts.tokens, rollouts.cu_seqlens)
        return keys if self._config.reward.truncated == "vote" else keys.masked_fill(
            rollouts.truncated, 0
        ), rollouts.cu_groups

    @contextlib.contextmanager
    def _sampler(self) -> Iterator[Sampler]:
        if self._own:
            yield self._own
            return
        self._engine.sync(self._model)
        yield self._engine
        self._engine.sync(self._policy)  # not after an exception: the run ends with it

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """theta <- decay theta + (1 - decay) theta of the policy."""
        torch._foreach_lerp_(
            list(self._model.model.parameters()), list(self._policy.model.parameters()), 1 - decay
        )

    def state_dict(self) -> dict:
        return self._model.model.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._model.model.load_state_dict(state)


def decay_at(done: float, first: float, last: float) -> float:
    """A teacher's decay after this part of the run: from `first` to `last` by a cosine."""
    return last - (last - first) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
