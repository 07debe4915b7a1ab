"""The formulas of a rank's memory against what FSDP2 holds on two ranks (gloo)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import Qwen2Config

from srt_fast.distributed.plan import memory
from srt_fast.distributed.plan.run import Precision
from srt_fast.distributed.plan.shape import find_shape
from srt_fast.model.logprobs import head_inputs
from srt_fast.model.policy import Policy
from srt_fast.packing.micro_batches import pack
from srt_fast.types import Layout, MicroBatch, Rollouts
from srt_kernels import Objective, linear_policy_loss
from support.memory import MemoryMeter
from support.models import SMALL, make_policy
from support.ranks import run_ranks

RANKS = 2
TOKENS = 12
CONFIG = SMALL | dict(
    vocab_size=2047,  # no multiple of the ranks: rank 0 has a row more
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=6,
    tie_word_embeddings=False,
)
SHARDED = Precision(weight=4, compute=2, residual=2)


def train_on_a_rank() -> None:
    """Two micro-batches and an optimizer step. Prints the bytes of this rank's state, and the peak
    of the second micro-batch, which finds gradients of the first."""
    dist.init_process_group("gloo")
    policy = make_policy(Qwen2Config(**CONFIG), autocast="bfloat16", gradient_checkpointing=True)
    model = policy.model
    shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = micro_batch()
    with MemoryMeter() as meter:
        train(policy, batch)
        meter.reset_peak()
        train(policy, batch)
    sizes = {
        "peak": meter.peak,
        "weights": local_bytes(model.parameters()),
        "gradients": local_bytes(gradients(model)),
    }
    optimizer.step()
    states = [state.values() for state in optimizer.state.values()]
    sizes["Adam"] = local_bytes(value for value in itertools.chain(*states) if value.ndim)
    print(json.dumps(sizes))
    dist.destroy_process_group()


def shard(model: torch.nn.Module) -> None:
    options = dict(
        mesh=init_device_mesh("cpu", (RANKS,)),
        mp_policy=MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
    )
    for block in model.model.layers:
        fully_shard(block, **options)
    fully_shard(model, reshard_after_forward=False, **options)
    model.run = lambda function: function()
    register_fsdp_forward_method(model, "run")
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)


def train(policy: Policy, batch: MicroBatch) -> None:
    def loss() -> Tensor:
        tensors, options = head_inputs(policy, batch, temperature=1.0)
        objective = Objective.preset("reinforce")
        result = linear_policy_loss(
            *tensors, batch.advantages, batch.cu_seqlens, objective, normalizer=1.0, **options
        )
        return result.loss

    policy.model.run(loss).backward()


def micro_batch() -> MicroBatch:
    rollouts = Rollouts(
        tokens=torch.arange(10, 19),  # the last one predicts nothing
        cu_seqlens=torch.tensor([0, 9], dtype=torch.int32),
        cu_groups=torch.tensor([0, 1], dtype=torch.int32),
        logprobs=torch.zeros(9),
        truncated=torch.zeros(1, dtype=torch.bool),
        prompts=[[3, 4, 5, 6]],
        layout=Layout(lengths=[9], group_sizes=[1]),
    )
    [batch] = pack(rollouts, torch.ones(1), range(1), token_budget=TOKENS)
    return batch


def gradients(model: torch.nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def local_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.to_local().nbytes if isinstance(t, DTensor) else t.nbytes for t in tensors)


def test_state_and_peak_of_a_rank(tmp_path):
    """State: equal to the byte. Peak of the backward pass: but for a block's activations, which are
    freed before its gradients are reduced."""
    Qwen2Config(**CONFIG).save_pretrained(tmp_path)
    shape = find_shape(str(tmp_path))
    first, last = (json.loads(output) for output in run_ranks(train_on_a_rank, RANKS, timeout=300))
    share = 4 * shape.shard_size(RANKS)
    assert (first["weights"], first["gradients"], first["Adam"]) == (share, share, 2 * share)
    assert first["weights"] + last["weights"] == 4 * shape.size
    of_block = memory.block_activations(shape, SHARDED, TOKENS, TOKENS)
    of_block += memory.backward_temporaries(shape, SHARDED, TOKENS)
    kept = memory.activations(shape, SHARDED, TOKENS, TOKENS, checkpointing=True)
    kept += memory.head_gradients(shape, SHARDED, TOKENS)
    peak = share + kept + of_block + sum(memory.unit_bytes(shape, SHARDED).values())
    assert of_block < 0.01 * peak
    assert peak - of_block <= first["peak"] <= peak
