"""Vocab-sharded heads: two processes with half of the vocabulary each agree with one process."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from srt_kernels import Objective, linear_logprob, linear_policy_loss
from support.bounds import NAMES, HeadBounds, assert_within
from support.loss_bounds import Sensitivity
from support.ops import LENGTHS, exact_rollouts

pytestmark = pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="gloo, on CPUs")
V = 332
# Objective, options of the batch, settings of the loss.
CASES = [
    (Objective.preset("dapo"), {}, {}),  # token ratios
    (  # whole rollouts, some of them longer than a chunk, and entropies
        Objective.preset("gspo", entropy_coef=0.01, clip_low=0.5, clip_high=0.5),
        {},
        {"chunk_rows": 8},
    ),
    (Objective.preset("cispo"), {"shared": True, "softcap": 30.0, "temperature": 0.7}, {}),
]


def head_settings(batch, options):
    return {
        "temperature": options.get("temperature", 1.0),
        "softcap": options.get("softcap"),
        "row_index": batch.row_index,
    }


def run(objective, options, settings, rank=0, world_size=1):
    """Results and gradients; those of weight and bias are of the rank's rows."""
    group = dist.group.WORLD if world_size > 1 else None
    batch = exact_rollouts(LENGTHS, vocab_size=V, **options)
    shard = slice(rank * V // world_size, (rank + 1) * V // world_size)
    tensors = (batch.hidden, batch.weight[shard], batch.bias[shard])
    hidden, weight, bias = leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    settings = settings | head_settings(batch, options) | {"bias": bias, "group": group}
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


def error_bounds(objective, options):
    """Of what run returns. One process and two differ by at most twice as much."""
    batch = exact_rollouts(LENGTHS, vocab_size=V, **options)
    head_bounds = HeadBounds(
        batch.hidden, batch.weight, batch.targets, bias=batch.bias, **head_settings(batch, options)
    )
    sensitivity = Sensitivity(head_bounds, batch, objective, old_logprobs=batch.old_logprobs)
    loss_bounds = sensitivity.bounds(head_bounds)
    tokens = len(batch.targets)
    means = torch.full((tokens,), 1 / tokens, dtype=torch.float64)
    gradients = [
        of_loss + of_means
        for of_loss, of_means in zip(
            loss_bounds.gradients, head_bounds.gradients(0.1 * means, -means), strict=True
        )
    ]
    return [loss_bounds.loss, loss_bounds.logprobs, loss_bounds.entropies, *gradients]


def work(rank, rendezvous, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.save([run(*case, rank, 2) for case in CASES], f"{path}.{rank}")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(work, (tmp_path / "rendezvous", tmp_path / "out"), nprocs=2)
    ranks = [torch.load(tmp_path / f"out.{rank}") for rank in range(2)]
    for case, first, second in zip(CASES, *ranks, strict=True):
        for result, other in zip(first[:4], second[:4], strict=True):
            assert torch.equal(result, other)  # both know all of it, dhidden included
        halves = zip(first[4:], second[4:], strict=True)
        sharded = [*first[:4], *(torch.cat(pair) for pair in halves)]
        names = ("loss", "logprobs", "entropies", *NAMES)
        bounds = error_bounds(*case[:2])
        for name, actual, expected, bound in zip(names, sharded, run(*case), bounds, strict=True):
            assert_within(name, actual, expected, 2 * bound)
