"""A step's seconds and model FLOPs, and how far they are from what the device reaches.

The parts of a step are "sample", "reward", "score", "train" and "sync". "score" is every pass
without gradient outside of sampling: old and reference log-probs, statistics, verdicts. It happens
inside of other parts, and so does a teacher's sampling. Their time is left out of the other part.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from srt_fast.types import Rollouts
from srt_fast.utilization.flops import ModelCost, SegmentLengths
from srt_fast.utilization.layout import packed_segments, sampling_passes
from srt_fast.utilization.rates import DeviceRates

PARTS = ("sample", "reward", "train", "sync")
"""The parts in their order. "score" has no place of its own."""
KINDS = ("sample", "score", "train")
"""The parts that compute."""

Metrics = dict[str, float | None]


class HostTimer:
    """Seconds from its making to `stop`, by the host's clock."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def stop(self) -> None:
        self._stop = time.perf_counter()

    def seconds(self) -> float:
        return self._stop - self._start


class CudaTimer:
    """The same by the device's clock. `seconds` needs a device that has passed `stop`."""

    def __init__(self) -> None:
        self._begin = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)
        self._begin.record()

    def stop(self) -> None:
        self._end.record()

    def seconds(self) -> float:
        return self._begin.elapsed_time(self._end) / 1000


Timer = HostTimer | CudaTimer


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a step is compared with."""

    cost: ModelCost
    rates: DeviceRates
    element_bytes: int  # of the dtype that computes
    copies: int = 1  # of the weights among the samplers, each of which reads all of its copy
    shares_prompts: bool = False  # packed passes compute a group's prompt once
    times_sampling: bool = True  # whether this device samples, within seconds_sample


class StepMeter:
    """Seconds of a step by part, and with a `limit` its FLOPs.

    A step calls `start`, then `with meter.part(name): ...` around its parts, and `count_...` for
    its passes. Everything that is counted lies on the host: nothing waits for the device.

    device: where scoring runs. On CUDA the host does not wait for scoring, so that its seconds are
    those of the device.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.limit: Limit | None = None
        self._on_cuda = device is not None and device.type == "cuda"
        self.start()

    def start(self) -> None:
        """Begin a step."""
        self._start_time = time.perf_counter()
        self._outer: str | None = None  # the part under way
        self._spans: list[tuple[str, str | None, Timer]] = []
        self._sampled_tokens = 0
        self._flops: Counter[str] = Counter()
        self._sample_limit = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the step, perhaps inside of another one."""
        outer, self._outer = self._outer, name
        timer = CudaTimer() if self._on_cuda and name == "score" else HostTimer()
        try:
            yield
        finally:
            timer.stop()
            self._spans.append((name, outer, timer))
            self._outer = outer

    # ---- passes ----

    def count_sampling(self, rollouts: Rollouts) -> None:
        """These rollouts were sampled, in one call of the sampler."""
        self._sampled_tokens += sum(rollouts.layout.lengths)
        if self.limit is None:
            return
        cost, rates = self.limit.cost, self.limit.rates
        passes = sampling_passes(rollouts)
        prefill = cost.forward(passes.prefill)
        decoding = cost.forward(passes.decoding)
        elements = cost.read_elements(passes.decoding, self.limit.copies * passes.steps)
        self._flops["sample"] += prefill + decoding
        self._sample_limit += prefill / rates.flops + max(
            decoding / rates.flops, elements * self.limit.element_bytes / rates.bandwidth
        )

    def count_scoring(self, rollouts: Rollouts, indices: Sequence[int]) -> None:
        """A pass without gradient over these rollouts."""
        if self.limit:
            segments = self._packed_segments(self.limit, rollouts, indices)
            self._flops["score"] += self.limit.cost.forward(segments)

    def count_training(self, rollouts: Rollouts, indices: Sequence[int]) -> None:
        """A forward and a backward pass over these rollouts."""
        if self.limit:
            segments = self._packed_segments(self.limit, rollouts, indices)
            self._flops["train"] += self.limit.cost.training(segments)

    @staticmethod
    def _packed_segments(
        limit: Limit, rollouts: Rollouts, indices: Sequence[int]
    ) -> SegmentLengths:
        return packed_segments(rollouts, indices, shares_prompts=limit.shares_prompts)

    # ---- figures ----

    def metrics(self) -> Metrics:
        """seconds_PART of each part, and seconds, the whole step; sampled_tokens. With a limit
        also, for each of KINDS, KIND_flops and KIND_mfu, and sample_limit_seconds and limit_share.

        On CUDA the step must have waited for the device after its last scoring.
        """
        seconds = self._seconds_of_parts()
        total = time.perf_counter() - self._start_time
        values: Metrics = {f"seconds_{part}": value for part, value in seconds.items()}
        values["seconds"] = total
        values["sampled_tokens"] = self._sampled_tokens
        return values | (self._utilization(self.limit, seconds, total) if self.limit else {})

    def _seconds_of_parts(self) -> dict[str, float]:
        """Seconds of each part without those inside of it.

        On CUDA the host may wait for scoring in a later part than that which asked for it. What is
        missing in one part is taken from the next.
        """
        own: dict[str, float] = dict.fromkeys((*PARTS, "score"), 0.0)
        for name, outer, timer in self._spans:
            seconds = timer.seconds()
            own[name] += seconds
            if outer and outer != name:
                own[outer] -= seconds
        missing = 0.0
        for part in PARTS:
            left = own[part] - missing
            missing = max(0.0, -left)
            own[part] = max(0.0, left)
        return own

    def _utilization(self, limit: Limit, seconds: dict[str, float], total: float) -> Metrics:
        rate = limit.rates.flops
        values: Metrics = {f"{kind}_flops": float(self._flops[kind]) for kind in KINDS}
        for kind in KINDS:
            is_timed = seconds[kind] > 0 and (kind != "sample" or limit.times_sampling)
            is_timed = is_timed and self._flops[kind] > 0
            mfu = self._flops[kind] / rate / seconds[kind] if is_timed else None
            values[f"{kind}_mfu"] = mfu
        if not limit.times_sampling:
            return values | {"sample_limit_seconds": None, "limit_share": None}
        computed = (self._flops["score"] + self._flops["train"]) / rate
        return values | {
            "sample_limit_seconds": self._sample_limit,
            "limit_share": (self._sample_limit + computed) / total,
        }
