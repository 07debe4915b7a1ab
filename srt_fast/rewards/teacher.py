"""Models that answer the policy's prompts too: the starting model, and a moving average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from srt_fast.config import Config
from srt_fast.distributed.sharding import local_part
from srt_fast.model.policy import Policy
from srt_fast.rewards.base import answer_keys
from srt_fast.sampling import Sampler
from srt_fast.sampling.base import SamplingParams, draw_seeds
from srt_fast.sampling.hf import HFSampler
from srt_fast.sampling.ranks import over_ranks
from srt_fast.transfer import send
from srt_fast.utilization.meter import StepMeter
from srt_kernels import AnswerReader


class Teacher:
    """A model of the policy's architecture that is never trained.

    With vLLM the teacher borrows the policy's engine. That costs two more weight syncs a step and
    saves a second engine.
    """

    def __init__(
        self,
        config: Config,
        model: Policy,
        policy: Policy,
        sampler: Sampler,
        reader: AnswerReader,
        stop_sampling: Callable[[], None],
        meter: StepMeter | None = None,
    ) -> None:
        self._config = config
        self._model = model
        self._policy = policy
        self._reader = reader
        self._engine = sampler
        self._meter = meter or StepMeter()
        self._hf_sampler: Sampler | None = None
        if config.sampling.engine == "hf":
            own_sampler = HFSampler(model, config.sampling.max_sequences, stop_sampling)
            self._hf_sampler = over_ranks(own_sampler, model.world)

    def answers(
        self, prompts: list[list[int]], samples: int, asked: Sequence[bool] | None = None
    ) -> tuple[Tensor, Tensor]:
        """[R'] answer keys of `samples` completions of each prompt, and [P+1] int32 cu_groups.

        samples 0: as many as sampling.group_size. reward.truncated holds for the teacher too.
        asked: one for each prompt. A prompt that is not asked about has no completions. What is
        drawn for the others, and by later calls, does not depend on it. None: all are.
        """
        seeds = draw_seeds(len(prompts))
        if asked is None:
            asked = [True] * len(prompts)
        places = [place for place, is_asked in enumerate(asked) if is_asked]
        if not places:
            keys = torch.zeros(0, dtype=torch.int64, device=self._policy.device)
            return keys, torch.zeros(len(prompts) + 1, dtype=torch.int32, device=keys.device)
        sampling = self._config.sampling
        params = SamplingParams.of_training(sampling, n=samples or sampling.group_size)
        with self._meter.part("sample"), self._sampler() as sampler:
            rollouts = sampler.sample(
                [prompts[place] for place in places],
                params,
                seeds=[seeds[place] for place in places],
            )
        self._meter.count_sampling(rollouts)
        keys = answer_keys(self._reader, rollouts, self._config.reward)
        counts = params.n * torch.tensor([0, *asked]).cumsum(0)
        [cu_groups] = send([counts.int()], keys.device)
        return keys, cu_groups

    @contextlib.contextmanager
    def _sampler(self) -> Iterator[Sampler]:
        if self._hf_sampler:
            yield self._hf_sampler
            return
        self._engine.sync(self._model)
        yield self._engine
        self._engine.sync(self._policy)  # not after an exception: the run ends then

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """theta <- decay theta + (1 - decay) theta of the policy. Adapters: of A and of B."""
        policy_weights = self._policy.own_weights()
        for name, weight in self._model.own_weights().items():
            if isinstance(weight, nn.Parameter):
                # Both models are sharded alike, so each rank moves its own part.
                local_part(weight).lerp_(local_part(policy_weights[name]), 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """The weights by name, not copied. Tied ones come once."""
        return self._model.own_weights()


def decay_at(progress: float, initial: float, final: float) -> float:
    """The teacher's decay at this fraction of the run: from `initial` to `final` by a cosine."""
    return final - (final - initial) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
