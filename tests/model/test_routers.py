"""The auxiliary loss of experts in a training pass, against that of transformers' own models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MixtralConfig, PreTrainedModel, Qwen3MoeConfig

from srt_fast.config import Config, DistConfig, override
from srt_fast.config.recipes import quickstart
from srt_fast.distributed.launch import start
from srt_fast.distributed.sharding import gather_weight
from srt_fast.learner import Learner
from srt_fast.model.loading import load_policy
from srt_fast.model.policy import Policy
from srt_fast.quickstart import build_tokenizer
from srt_fast.types import MicroBatch, Reward, Rollouts
from support.models import SMALL, make_model, make_policy, rounding_error
from support.ranks import run_ranks
from support.rollouts import random_rollouts

COEF = 0.5
PROMPTS = ("1+2=", "300+40=", "7+7=", "12+3=")
SAMPLES = 4
# Routers that prefer some experts, and the same ones in most layers: the loss is not even.
EXPERTS = SMALL | {"initializer_range": 0.3, "num_experts_per_tok": 2}
CONFIGS = {
    "mixtral": MixtralConfig(**EXPERTS, num_local_experts=4),
    # Its first layer has no experts.
    "qwen3_moe": Qwen3MoeConfig(
        **EXPERTS, num_experts=6, moe_intermediate_size=16, head_dim=8, mlp_only_layers=[0]
    ),
}
Gradients = dict[str, Tensor]


def make_config(coef: float, token_budget: int) -> Config:
    changes = {"train.router_aux_loss_coef": coef, "train.token_budget": token_budget}
    return override(quickstart(), changes)


def make_reward(count: int) -> Reward:
    """Two groups of four disagree, the others agree. One rollout is left out."""
    rewards = torch.ones(count)
    rewards[[1, 9, 10]] = 0
    keep = torch.ones(count, dtype=torch.bool)
    keep[6] = False
    return Reward(rewards=rewards, keep=keep)


def training_pass(learner: Learner, rollouts: Rollouts) -> tuple[list[MicroBatch], Gradients]:
    """The micro-batches of the one mini-batch, and the gradients of its loss, whole."""
    [minibatch] = learner.pack(rollouts, make_reward(len(rollouts.truncated)))
    for batch in minibatch:
        learner.loss(batch).backward()
    gradients = {
        name: gather_weight(weight.grad, None).clone()
        for name, weight in learner._policy.model.named_parameters()
        if weight.grad is not None
    }
    return minibatch, gradients


def aux_loss_of_model(
    model: PreTrainedModel, rollouts: Rollouts, micro_batches: Sequence[Sequence[int]]
) -> tuple[float, Gradients]:
    """The model's own aux_loss over padded rows, a mean over micro-batches weighted by tokens.

    micro_batches: the rollouts of each. The last token of a completion is no input.
    """
    offsets = rollouts.layout.offsets
    losses = []
    sizes = []
    for indices in micro_batches:
        rows = [
            torch.tensor(
                rollouts.prompts[rollouts.layout.groups[index]]
                + rollouts.tokens[offsets[index] : offsets[index + 1] - 1].tolist()
            )
            for index in indices
        ]
        masks = [torch.ones_like(row) for row in rows]
        output = model(
            input_ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
            attention_mask=torch.nn.utils.rnn.pad_sequence(masks, batch_first=True),
            output_router_logits=True,
            use_cache=False,
        )
        losses.append(output.aux_loss)
        sizes.append(sum(map(len, rows)))
    pairs = zip(losses, sizes, strict=True)
    loss = sum((loss * size / sum(sizes) for loss, size in pairs), torch.zeros(()))
    model.zero_grad()
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return loss.item(), {name: grad for name, grad in gradients.items() if grad is not None}


def check(actual: Gradients, policy_loss: Gradients, aux_loss: Gradients) -> None:
    """The gradients are those of the policy loss, plus COEF times those of the auxiliary loss."""
    size = max(gradient.abs().max().item() for gradient in actual.values())
    terms = 2 * (4 * 32 + 3 * 48) + 4 * sum(range(SAMPLES * len(PROMPTS)))
    tolerance = rounding_error(terms, size, 2**-24)
    zero = torch.zeros(())
    for name, gradient in actual.items():
        expected = policy_loss.get(name, zero) + COEF * aux_loss.get(name, zero)
        assert (gradient - expected).abs().max() <= tolerance, name
    routers = [aux_loss[name].abs().max().item() for name in actual if name.endswith("gate.weight")]
    assert routers and COEF * min(routers) > 100 * tolerance


@pytest.mark.parametrize(
    "name, token_budget, options",
    [
        ("mixtral", 10**9, {}),
        ("qwen3_moe", 60, {"gradient_checkpointing": True}),  # groups are cut
        ("qwen3_moe", 60, {"share_prompts": False}),
    ],
)
def test_a_training_pass(name, token_budget, options):
    """Loss and gradients, with shared prompts and without. Unanimous groups count too."""
    policy = make_policy(CONFIGS[name], **{"share_prompts": True} | options)
    rollouts = random_rollouts(policy, SAMPLES, PROMPTS)
    without = Learner(make_config(0, token_budget), policy, None, lambda: None)
    _, policy_loss = training_pass(without, rollouts)
    without.discard_gradients()

    learner = Learner(make_config(COEF, token_budget), policy, None, lambda: None)
    minibatch, gradients = training_pass(learner, rollouts)
    micro_batches = [batch.rollout_index.tolist() for batch in minibatch]
    assert (len(micro_batches) > 2) == (token_budget == 60)
    assert sorted(sum(micro_batches, [])) == [*range(6), *range(7, 16)]
    aux_loss, aux_gradients = aux_loss_of_model(policy.model, rollouts, micro_batches)
    check(gradients, policy_loss, aux_gradients)

    learner.step({})
    logged = learner.end_step()["router_aux_loss"]
    assert logged == pytest.approx(aux_loss, rel=rounding_error(16, 1, 2**-24))
    assert logged > policy.model.config.num_experts_per_tok * 1.01


def ranks_task(folder: str, output: str) -> None:
    world = start(DistConfig())
    policy = load_policy(folder, quickstart().model, world, share_prompts=True)
    rollouts = random_rollouts(policy, SAMPLES, PROMPTS)
    learner = Learner(make_config(COEF, 60), policy, None, lambda: None)
    minibatch, gradients = training_pass(learner, rollouts)
    micro_batches = [batch.rollout_index.tolist() for batch in minibatch if len(batch.targets)]
    torch.save((micro_batches, gradients), Path(output) / f"{world.rank}.pt")
    world.close()


def test_on_two_ranks(tmp_path):
    """The mean over the micro-batches of both ranks, of a sharded model."""
    folder = tmp_path / "model"
    model = make_model(CONFIGS["mixtral"])
    model.config.save_pretrained(folder)
    # Ranks read tensors by the model's own names. save_pretrained would split the experts.
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    build_tokenizer().save_pretrained(folder)
    run_ranks(ranks_task, 2, str(folder), str(tmp_path), timeout=300)
    (first, gradients), (second, others) = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    assert all(gradients[name].equal(others[name]) for name in gradients)

    policy = make_policy(CONFIGS["mixtral"], share_prompts=True)
    rollouts = random_rollouts(policy, SAMPLES, PROMPTS)
    without = Learner(make_config(0, 60), policy, None, lambda: None)
    _, policy_loss = training_pass(without, rollouts)
    without.discard_gradients()
    _, aux_gradients = aux_loss_of_model(policy.model, rollouts, first + second)
    check(gradients, policy_loss, aux_gradients)


def test_a_model_without_routers_is_refused(tiny_policy: Policy):
    message = "train.router_aux_loss_coef: expected 0, or a mixture of experts .*, got LlamaFor"
    with pytest.raises(ValueError, match=message):
        Learner(make_config(COEF, 100), tiny_policy, None, lambda: None)
