"""What a provider of bench/loss.py launches in a case on a chip, and what that takes: predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from roofline.chips import Chip
from roofline.launches import Launch
from roofline.trace import ChipTensor, chip_tensor, trace_on
from steps.batch import Batch, Case, Tokens, make_advantages
from steps.provider import Provider


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One call of a provider's step."""

    chip: Chip
    case: Case
    provider: str
    launches: list[Launch]
    peak_bytes: int  # above the inputs, results included, as measure.py measures it
    input_bytes: int  # hidden states and weight

    @cached_property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.launches)

    @cached_property
    def bytes(self) -> int:
        return sum(launch.bytes for launch in self.launches)

    @cached_property
    def seconds(self) -> float:
        return sum(self.chip.seconds(launch) for launch in self.launches)

    @property
    def memory_share(self) -> float:
        """Of the chip's memory, with the inputs."""
        return (self.peak_bytes + self.input_bytes) / self.chip.memory

    def by_name(self) -> list[tuple[str, list[Launch], float]]:
        """Name, launches and seconds of each kind of launch, the dearest first."""
        groups: dict[str, list[Launch]] = {}
        for launch in self.launches:
            groups.setdefault(launch.name, []).append(launch)
        rows = [
            (name, launches, sum(self.chip.seconds(launch) for launch in launches))
            for name, launches in groups.items()
        ]
        return sorted(rows, key=lambda row: -row[2])


def predict(provider: Provider, case: Case, chips: Sequence[Chip]) -> list[Prediction]:
    """A prediction for each chip. Chips that look the same to the ops share a trace."""
    batch = make_chip_batch(case)
    traces: dict[tuple[str, int], tuple[list[Launch], int]] = {}
    predictions = []
    for chip in chips:
        key = (chip.architecture, chip.multiprocessors)
        if key not in traces:
            traces[key] = trace_step(provider, batch, chip)
        launches, peak_bytes = traces[key]
        predictions.append(
            Prediction(
                chip=chip,
                case=case,
                provider=provider.name,
                launches=launches,
                peak_bytes=peak_bytes,
                input_bytes=batch.weight.nbytes + batch.packed.hidden.nbytes,
            )
        )
    return predictions


def trace_step(provider: Provider, batch: Batch, chip: Chip) -> tuple[list[Launch], int]:
    """The launches of a step, and its peak of memory."""
    with trace_on(chip) as trace:
        step = provider.build(batch)
        trace.begin()
        step()
    return trace.launches, trace.peak - trace.live_before


def make_chip_batch(case: Case) -> Batch:
    """The batch that make_batch makes, on a pretended GPU."""
    lengths = torch.tensor(case.lengths)
    total = sum(case.lengths)
    advantages = make_advantages(case)
    head = (case.hidden_size, case.dtype)
    return Batch(
        weight=chip_tensor(case.vocab_size, *head).requires_grad_(),
        packed=Tokens(
            hidden=chip_tensor(total, *head).requires_grad_(),
            targets=chip_tensor(total, torch.int64),
            advantages=ChipTensor(advantages.repeat_interleave(lengths)),
            weights=chip_tensor(total, torch.float32),
        ),
        active_tokens=case.active_tokens,
        advantages=ChipTensor(advantages),
        cu_seqlens=ChipTensor(torch.tensor([0, *case.lengths]).cumsum(0).int()),
        keep=chip_tensor(len(lengths), max(case.lengths), torch.bool),
        truth=None,  # pyright: ignore[reportArgumentType]: no step reads it
    )
