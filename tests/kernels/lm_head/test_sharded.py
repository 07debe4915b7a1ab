"""Vocab-sharded heads: two processes with half of the vocabulary each compute what one computes with the whole."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from srt_kernels import Objective, linear_logprob, linear_policy_loss
from srt_kernels.testing import assert_close, packed_rollouts
from support.ops import LENGTHS, NATS, RELATIVE

pytestmark = pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="gloo, on CPUs")
V = 332
# token ratios; whole rollouts, some longer than a chunk, with entropies; a softcap, temperature and shared rows
CASES = [
    (Objective.preset("dapo"), {}, {}),
    (
        Objective.preset("gspo", entropy_coef=0.01, clip_low=0.5, clip_high=0.5),
        {},
        {"chunk_rows": 8},
    ),
    (Objective.preset("cispo"), {"shared": True, "softcap": 30.0, "temperature": 0.7}, {}),
]


def run(objective, options, settings, rank=0, world=1):
    """Results and gradients; those of weight and bias are of the rank's rows."""
    group = dist.group.WORLD if world > 1 else None
    batch = packed_rollouts(LENGTHS, vocab_size=V, **options)
    shard = slice(rank * V // world, (rank + 1) * V // world)
    leaves = [
        t.clone().requires_grad_() for t in (batch.hidden, batch.weight[shard], batch.bias[shard])
    ]
    hidden, weight, bias = leaves
    settings = settings | {
        "temperature": options.get("temperature", 1.0),
        "softcap": options.get("softcap"),
    }
    settings |= {"row_index": batch.row_index, "bias": bias, "group": group}
    out = linear_policy_loss(
        hidden,
        weight,
        batch.targets,
        batch.advantages,
        batch.cu_seqlens,
        objective,
        old_logprobs=batch.old_logprobs,
        **settings,
    )
    logprobs, entropies = linear_logprob(hidden, weight, batch.targets, **settings)
    (out.loss + (0.1 * logprobs - entropies).mean()).backward()
    return [
        out.loss.detach(),
        logprobs.detach(),
        entropies.detach(),
        *(leaf.grad for leaf in leaves),
    ]


def work(rank, rendezvous, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.save([run(*case, rank, 2) for case in CASES], f"{path}.{rank}")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(work, (tmp_path / "rendezvous", tmp_path / "out"), nprocs=2)
    ranks = [torch.load(tmp_path / f"out.{rank}") for rank in range(2)]
    for case, first, second in zip(CASES, *ranks, strict=True):
        loss, logprobs, entropies, *grads = run(*case)
        for mine, other in zip(first[:4], second[:4], strict=True):
            assert torch.equal(mine, other)  # both know all of it, dhidden included
        for name, got, expected in zip(
            ("loss", "logprobs", "entropies"), first, (loss, logprobs, entropies), strict=False
        ):
            assert_close(name, got, expected, atol=2 * NATS)
        sharded = [
            first[3],
            *(torch.cat(halves) for halves in zip(first[4:], second[4:], strict=True)),
        ]
        for name, got, expected in zip(
            ("dhidden", "dweight", "dbias"), sharded, grads, strict=True
        ):
            assert_close(name, got, expected, rtol=2 * RELATIVE)
