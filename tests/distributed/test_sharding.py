"""Gradients of a sharded model against those of one process."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from srt_fast.config import DistConfig, ModelConfig
from srt_fast.distributed.launch import start
from srt_fast.distributed.sharding import gather_weight
from srt_fast.distributed.world import ONE_PROCESS
from srt_fast.model.loading import load_policy
from srt_fast.model.logprobs import head_inputs
from srt_fast.model.policy import Policy
from srt_fast.packing.micro_batches import pack
from srt_fast.quickstart import build_tokenizer
from srt_fast.sampling.base import restore_rollouts, rollout_tensors
from srt_fast.types import Rollouts
from srt_kernels import Objective, linear_policy_loss
from support.models import SMALL, make_model
from support.ranks import run_ranks
from support.rollouts import random_rollouts

PROMPTS = ("1+2=", "30+4=", "7+7=", "12+3=")
TOKEN_BUDGET = 40  # several micro-batches on each rank, and not equally many tokens
ROUNDING = 4.0
"""How much larger the error of a sum in another order may be. Both are measured against float64."""

FLOAT32 = ModelConfig(autocast="off")
VARIANTS = {
    "plain": (FLOAT32, DistConfig()),
    "activations recomputed": (replace(FLOAT32, gradient_checkpointing=True), DistConfig()),
    "weights stay whole": (FLOAT32, DistConfig(reshard_after_forward=False)),
    "offloaded": (FLOAT32, DistConfig(cpu_offload=True)),
    "bfloat16": (ModelConfig(autocast="bfloat16"), DistConfig()),
    "compiled": (ModelConfig(compile=True), DistConfig()),
}


def gradients(policy: Policy, rollouts: Rollouts, factor: float = 1.0) -> dict:
    """Gradients of the policy loss by name, whole and in float64. factor: of the loss."""
    advantages = random_advantages(rollouts)
    indices = range(len(advantages))
    share = policy.shares_prompts
    for batch in pack(
        rollouts, advantages, indices, TOKEN_BUDGET, policy.world, share_prompts=share
    ):

        def forward(batch=batch):
            tensors, options = head_inputs(policy, batch, 1.0)
            return linear_policy_loss(
                *tensors,
                batch.advantages,
                batch.cu_seqlens,
                Objective.preset("reinforce"),
                normalizer=torch.tensor(float(len(rollouts.tokens)), device=policy.device),
                **options,
            ).loss

        (factor * policy.run(forward)).backward()
    return {
        name: gather_weight(weight.grad, None).double()
        for name, weight in policy.model.named_parameters()
        if weight.grad is not None
    }


def random_advantages(rollouts: Rollouts) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(len(rollouts.truncated), generator=generator)
    return advantages.to(rollouts.tokens.device)


def rollouts_on_device(policy: Policy) -> Rollouts:
    """Random rollouts where the policy is: `make gpu` runs this file on two GPUs."""
    rollouts = random_rollouts(policy, 4, PROMPTS)
    return restore_rollouts(rollout_tensors(rollouts), rollouts.prompts, policy.device)


def largest_error(actual: dict, expected: dict) -> float:
    """The largest relative error of a weight's gradient, in the Frobenius norm."""
    assert actual.keys() == expected.keys()
    return max(
        ((actual[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected
    )


def exact_gradients(folder: str, rollouts: Rollouts) -> dict:
    """Gradients in float64, by autograd over whole logits."""
    policy = load_policy(folder, FLOAT32)
    policy.model.double()
    indices = range(len(rollouts.truncated))
    [batch] = pack(rollouts, random_advantages(rollouts), indices, 10**9)
    hidden = policy.hidden(batch.input_ids, batch.position_ids, batch.segments)
    logits = hidden[batch.row_index] @ policy.head.weight.T
    logprobs = logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
    token_advantages = batch.advantages.repeat_interleave(batch.cu_seqlens.diff())
    (-(token_advantages * logprobs).sum() / len(rollouts.tokens)).backward()
    return {name: weight.grad for name, weight in policy.model.named_parameters()}


def gradients_task(folders: list[str]) -> None:
    world = start(DistConfig())
    for folder in folders:
        rollouts = rollouts_on_device(load_policy(folder, FLOAT32))
        exact = exact_gradients(folder, rollouts)
        for name, (model, dist) in VARIANTS.items():
            alone = gradients(load_policy(folder, model, ONE_PROCESS, share_prompts=True), rollouts)
            sharded = load_policy(folder, model, replace(world, settings=dist), share_prompts=True)
            assert sharded.shares_prompts
            error = largest_error(gradients(sharded, rollouts), exact)
            bar = ROUNDING * largest_error(alone, exact)
            assert error <= bar, f"{name} of {folder}: {error:.2g} > {bar:.2g}"
        broken = gradients(sharded, rollouts, factor=math.nan if world.rank == 1 else 1.0)
        assert all(gradient.isnan().any() for gradient in broken.values())
    world.close()


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Models with a head of their own and with a tied one."""
    paths = []
    for name, is_tied in (("own head", False), ("tied head", True)):
        settings = SMALL | {"tie_word_embeddings": is_tied, "initializer_range": 0.2}
        model = make_model(LlamaConfig(**settings))
        model.save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


def test_gradients_are_those_of_one_process(folders):
    """NaN on one rank reaches all."""
    run_ranks(gradients_task, 2, folders, timeout=300)
