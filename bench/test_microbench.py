"""Microbenches of the ops: `pytest bench/test_microbench.py`.

pytest-benchmark prints its table and writes --benchmark-json. They run on a GPU if there is one, or
on the device in SRT_BENCH_DEVICE. extra_info has the FLOPs and bytes that the op needs at least,
and what that makes per second. For the ops over the head it has the share of the floor: the time
that bare GEMMs of as many FLOPs take in the same session. The CPU's sizes are small: the file takes
under a minute, and says little of real sizes.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from measure import measure
from srt_kernels import (
    AnswerReader,
    Objective,
    group_advantage,
    linear_logprob,
    linear_policy_loss,
    majority_vote,
    policy_loss,
)
from steps.batch import Batch, Case, make_batch
from steps.providers import gemms

DEVICE = torch.device(
    os.environ.get("SRT_BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
)
IS_CUDA = DEVICE.type == "cuda"
HIDDEN_SIZE = 1536 if IS_CUDA else 256
VOCAB_SIZE = 151936 if IS_CUDA else 8192
LENGTHS = [512] * 16 if IS_CUDA else [32] * 16
DTYPES = (torch.bfloat16,) if IS_CUDA else (torch.float32, torch.bfloat16)
GROUPS = 1024 if IS_CUDA else 64
GROUP_SIZE = 64 if IS_CUDA else 16
GRPO = Objective.preset("grpo")
FLOOR_CALLS = 7
WARM_UP_CALLS = 2


@pytest.fixture(scope="module", params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def batch(request: pytest.FixtureRequest) -> Batch:
    """Rollouts of one length, all with a gradient."""
    case = Case(
        name="micro",
        hidden_size=HIDDEN_SIZE,
        vocab_size=VOCAB_SIZE,
        dtype=request.param,
        lengths=LENGTHS,
        group_size=4,
        unanimous=0,
    )
    return make_batch(case, DEVICE)


@pytest.fixture(scope="module")
def seconds_per_flop(batch: Batch) -> float:
    """Of the three bare GEMMs."""
    step = gemms(batch)
    seconds = [measure(step, DEVICE)[1] for _ in range(FLOOR_CALLS)]
    return statistics.median(seconds[WARM_UP_CALLS:]) / (3 * _gemm_flops(batch))


def _generator() -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(0)


def _cu_groups() -> Tensor:
    return torch.arange(GROUPS + 1, dtype=torch.int32, device=DEVICE) * GROUP_SIZE


def _gemm_flops(batch: Batch) -> int:
    return 2 * batch.weight.numel() * len(batch.packed.targets)


def _operand_bytes(batch: Batch) -> int:
    return batch.weight.nbytes + batch.packed.hidden.nbytes


def run(
    benchmark: Any,
    op: Callable[[], object],
    *,
    flops: int = 0,
    moved_bytes: int = 0,
    seconds_per_flop: float | None = None,
) -> None:
    """Benchmark `op`, a GPU's work included. flops and moved_bytes are the least that it needs."""

    def call() -> None:
        op()
        if IS_CUDA:
            torch.cuda.synchronize()

    benchmark(call)
    if benchmark.stats is None:  # --benchmark-disable
        return
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(
        device=DEVICE.type,
        flops=flops,
        bytes=moved_bytes,
        gigabytes_per_second=moved_bytes / median / 1e9,
    )
    if seconds_per_flop is not None:
        benchmark.extra_info.update(
            teraflops_per_second=flops / median / 1e12,
            share_of_gemms=flops * seconds_per_flop / median,
        )


def test_linear_logprob_without_gradient(benchmark, batch: Batch, seconds_per_flop: float) -> None:
    tokens = batch.packed

    @torch.no_grad()
    def op() -> None:
        linear_logprob(tokens.hidden, batch.weight, tokens.targets)

    run(
        benchmark,
        op,
        flops=_gemm_flops(batch),
        moved_bytes=_operand_bytes(batch),
        seconds_per_flop=seconds_per_flop,
    )


def test_linear_logprob_with_gradient(benchmark, batch: Batch, seconds_per_flop: float) -> None:
    tokens = batch.packed

    def op() -> None:
        logprobs, _ = linear_logprob(tokens.hidden, batch.weight, tokens.targets)
        torch.autograd.grad(logprobs.sum(), (tokens.hidden, batch.weight))

    run(
        benchmark,
        op,
        flops=3 * _gemm_flops(batch),
        moved_bytes=2 * _operand_bytes(batch),
        seconds_per_flop=seconds_per_flop,
    )


def test_linear_policy_loss(benchmark, batch: Batch, seconds_per_flop: float) -> None:
    tokens = batch.packed

    def op() -> None:
        result = linear_policy_loss(
            tokens.hidden, batch.weight, tokens.targets, batch.advantages, batch.cu_seqlens, GRPO
        )
        torch.autograd.grad(result.loss, (tokens.hidden, batch.weight))

    run(
        benchmark,
        op,
        flops=3 * _gemm_flops(batch),
        moved_bytes=2 * _operand_bytes(batch),
        seconds_per_flop=seconds_per_flop,
    )


def test_policy_loss(benchmark) -> None:
    generator = _generator()
    length = 256
    logprobs, old_logprobs = -torch.rand(2, GROUPS * length, generator=generator, device=DEVICE)
    logprobs.requires_grad_()
    advantages = torch.randn(GROUPS, generator=generator, device=DEVICE)
    cu_seqlens = torch.arange(GROUPS + 1, dtype=torch.int32, device=DEVICE) * length

    def op() -> None:
        result = policy_loss(logprobs, advantages, cu_seqlens, GRPO, old_logprobs=old_logprobs)
        torch.autograd.grad(result.loss, logprobs)

    run(benchmark, op, moved_bytes=3 * logprobs.nbytes)


def test_group_advantage(benchmark) -> None:
    size = (GROUPS * GROUP_SIZE,)
    rewards = torch.randint(2, size, generator=_generator(), device=DEVICE).float()
    cu_groups = _cu_groups()
    run(
        benchmark,
        lambda: group_advantage(rewards, cu_groups, kind="grpo"),
        moved_bytes=2 * rewards.nbytes,
    )


def test_majority_vote(benchmark) -> None:
    size = (GROUPS * GROUP_SIZE,)
    keys = torch.randint(GROUP_SIZE // 2, size, generator=_generator(), device=DEVICE)
    cu_groups = _cu_groups()
    result_bytes = 5 * len(keys)  # fp32 rewards, bool valid
    run(
        benchmark,
        lambda: majority_vote(keys, cu_groups),
        moved_bytes=keys.nbytes + result_bytes,
    )


def test_answer_keys(benchmark) -> None:
    """Rollouts of 256 tokens that end in a box, with GROUP_SIZE different answers."""
    rollouts = GROUPS * GROUP_SIZE
    tokens = torch.randint(
        ord("a"), ord("z"), (rollouts, 256), generator=_generator(), device=DEVICE
    )
    for number in range(GROUP_SIZE):
        text = f"\\boxed{{\\frac{{{number + 1}}}{{97}}}}."
        answer = torch.tensor(list(text.encode()), device=DEVICE)
        tokens[number::GROUP_SIZE, -len(answer) :] = answer
    tokens = tokens.flatten()
    cu_seqlens = torch.arange(rollouts + 1, dtype=torch.int32, device=DEVICE) * 256
    reader = AnswerReader([bytes([byte]) for byte in range(256)], "boxed")
    assert len(reader.keys(tokens, cu_seqlens).unique()) == GROUP_SIZE
    run(
        benchmark,
        lambda: reader.keys(tokens, cu_seqlens),
        moved_bytes=tokens.nbytes + 8 * rollouts,
    )
