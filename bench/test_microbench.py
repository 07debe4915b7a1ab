"""Microbenches of the ops: `pytest bench/test_microbench.py`, pytest-benchmark's table and its --benchmark-json.

On a GPU where there is one, or where SRT_BENCH_DEVICE says. extra_info: FLOPs and bytes that the op cannot do without,
what that makes per second, and for the ops over the head the share of the floor: the time that bare GEMMs of as many
FLOPs take in the same session. The CPU's sizes are small: the file takes under a minute, and says little of real ones.
"""

from __future__ import annotations

import os
import statistics

import pytest
import torch
from batch import Case, make_batch
from measure import measure
from providers import gemms

from srt_kernels import (
    Objective,
    group_advantage,
    linear_logprob,
    linear_policy_loss,
    majority_vote,
    policy_loss,
)
from srt_kernels.answers.reader import AnswerReader

DEVICE = torch.device(
    os.environ.get("SRT_BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
)
CUDA = DEVICE.type == "cuda"
HEAD = dict(hidden_size=1536, vocab_size=151936) if CUDA else dict(hidden_size=256, vocab_size=8192)
LENGTHS = [512] * 16 if CUDA else [32] * 16
DTYPES = (torch.bfloat16,) if CUDA else (torch.float32, torch.bfloat16)
GROUPS, SIZE = (1024, 64) if CUDA else (64, 16)  # prompts, rollouts of each
GRPO = Objective.preset("grpo")


@pytest.fixture(scope="module", params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def batch(request):
    """Rollouts of one length, none without gradient; and the seconds of a FLOP in the three bare GEMMs."""
    batch = make_batch(
        Case(name="micro", dtype=request.param, lengths=LENGTHS, group_size=4, unanimous=0, **HEAD),
        DEVICE,
    )
    floor = gemms(batch)
    seconds = [measure(floor, DEVICE)[1] for _ in range(7)][2:]
    return batch, statistics.median(seconds) / (3 * _gemm_flops(batch))


def _gemm_flops(batch) -> int:
    return 2 * batch.weight.numel() * len(batch.packed.targets)


def run(benchmark, op, *, flops: int = 0, moved: int = 0, seconds_per_flop: float | None = None):
    """Benchmark `op`(), a GPU's work included; flops and moved bytes are the least that it needs."""

    def call():
        op()
        if CUDA:
            torch.cuda.synchronize()

    benchmark(call)
    if benchmark.stats is None:  # --benchmark-disable
        return
    median = benchmark.stats.stats.median
    info = {
        "device": DEVICE.type,
        "flops": flops,
        "bytes": moved,
        "gigabytes_per_second": moved / median / 1e9,
    }
    if seconds_per_flop is not None:
        info |= {
            "teraflops_per_second": flops / median / 1e12,
            "share_of_gemms": flops * seconds_per_flop / median,
        }
    benchmark.extra_info.update(info)


def _operands(batch) -> int:
    return batch.weight.nbytes + batch.packed.hidden.nbytes


def test_linear_logprob_without_gradient(benchmark, batch):
    batch, rate = batch
    tokens = batch.packed

    @torch.no_grad()
    def op():
        linear_logprob(tokens.hidden, batch.weight, tokens.targets)

    run(benchmark, op, flops=_gemm_flops(batch), moved=_operands(batch), seconds_per_flop=rate)


def test_linear_logprob_with_gradient(benchmark, batch):
    batch, rate = batch
    tokens = batch.packed

    def op():
        logprobs, _ = linear_logprob(tokens.hidden, batch.weight, tokens.targets)
        torch.autograd.grad(logprobs.sum(), (tokens.hidden, batch.weight))

    run(
        benchmark,
        op,
        flops=3 * _gemm_flops(batch),
        moved=2 * _operands(batch),
        seconds_per_flop=rate,
    )


def test_linear_policy_loss(benchmark, batch):
    batch, rate = batch
    tokens = batch.packed

    def op():
        out = linear_policy_loss(
            tokens.hidden, batch.weight, tokens.targets, batch.advantages, batch.cu_seqlens, GRPO
        )
        torch.autograd.grad(out.loss, (tokens.hidden, batch.weight))

    run(
        benchmark,
        op,
        flops=3 * _gemm_flops(batch),
        moved=2 * _operands(batch),
        seconds_per_flop=rate,
    )


def test_policy_loss(benchmark):
    generator = torch.Generator(DEVICE).manual_seed(0)
    rollouts, length = GROUPS, 256
    logprobs, old = -torch.rand(2, rollouts * length, generator=generator, device=DEVICE)
    logprobs.requires_grad_()
    advantages = torch.randn(rollouts, generator=generator, device=DEVICE)
    cu_seqlens = torch.arange(rollouts + 1, dtype=torch.int32, device=DEVICE) * length

    def op():
        out = policy_loss(logprobs, advantages, cu_seqlens, GRPO, old_logprobs=old)
        torch.autograd.grad(out.loss, logprobs)

    run(benchmark, op, moved=3 * logprobs.nbytes)


def test_group_advantage(benchmark):
    rewards = torch.randint(
        2, (GROUPS * SIZE,), generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE
    ).float()
    cu_groups = torch.arange(GROUPS + 1, dtype=torch.int32, device=DEVICE) * SIZE
    run(
        benchmark,
        lambda: group_advantage(rewards, cu_groups, kind="grpo"),
        moved=2 * rewards.nbytes,
    )


def test_majority_vote(benchmark):
    keys = torch.randint(
        SIZE // 2, (GROUPS * SIZE,), generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE
    )
    cu_groups = torch.arange(GROUPS + 1, dtype=torch.int32, device=DEVICE) * SIZE
    run(
        benchmark, lambda: majority_vote(keys, cu_groups), moved=keys.nbytes + 5 * len(keys)
    )  # fp32 rewards, bool valid


def test_answer_keys(benchmark):
    """Rollouts of 256 tokens that end in a box, of as many different answers as a group has rollouts."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    tokens = torch.randint(
        ord("a"), ord("z"), (GROUPS * SIZE, 256), generator=generator, device=DEVICE
    )
    for number in range(SIZE):
        answer = torch.tensor(
            list(f"\\boxed{{\\frac{{{number + 1}}}{{97}}}}.".encode()), device=DEVICE
        )
        tokens[number::SIZE, -len(answer) :] = answer
    cu_seqlens = torch.arange(GROUPS * SIZE + 1, dtype=torch.int32, device=DEVICE) * 256
    reader, tokens = AnswerReader([bytes([byte]) for byte in range(256)], "boxed"), tokens.flatten()
    assert len(reader.keys(tokens, cu_seqlens).unique()) == SIZE
    run(benchmark, lambda: reader.keys(tokens, cu_seqlens), moved=tokens.nbytes + 8 * GROUPS * SIZE)
