"""The auxiliary loss of experts: SRTGRPOTrainer beside TRL's GRPOTrainer."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

pytest.importorskip("trl")
from srt_fast.integrations.trl import SRTGRPOTrainer
from support.trl import (
    COMPLETIONS,
    EAGER,
    ROLLOUTS,
    check_one_loss,
    check_same,
    make_both,
    one_loss,
    train_both,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and TRL warn about their own code
# Routers that prefer some experts: the loss is not even.
SMALL = dict(
    vocab_size=265,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.1,
    num_experts_per_tok=2,
    router_aux_loss_coef=0.5,
)
CONFIGS = {
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, num_experts=6, moe_intermediate_size=16, head_dim=8),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models on disk: a KL's reference is loaded from there."""
    paths = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        paths[name] = str(tmp_path_factory.mktemp(name))
        AutoModelForCausalLM.from_config(config).save_pretrained(paths[name])
    return paths


# The second group is unanimous: all of its gradient is the auxiliary loss's.
def rewards(**_: object) -> list[float]:
    return [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "name, options, settings",
    [
        ("mixtral", {}, dict(loss_type="grpo")),  # the coefficient is the model's own
        ("qwen3_moe", {}, dict(loss_type="dapo", router_aux_loss_coef=2.0, beta=0.04)),
        # Prompts of masked completions count.
        ("qwen3_moe", {}, dict(loss_type="grpo", mask_truncated_completions=True)),
        # TRL's arithmetic over our log-probs.
        ("mixtral", {}, dict(loss_type="grpo", entropy_coef=0.1)),
        # Padded rows.
        ("mixtral", EAGER, dict(loss_type="bnpo")),
        ("mixtral", {}, dict(loss_type="grpo", gradient_checkpointing=True)),
    ],
)
def test_one_loss(name, options, settings, make_trainer, folders):
    """Loss, gradients and metrics, for ragged prompts and completions."""
    settings = settings | dict(gradient_accumulation_steps=4)
    model = AutoModelForCausalLM.from_pretrained(folders[name], **options)
    trainers = make_both(make_trainer, model, ROLLOUTS, rewards=rewards, **settings)
    assert trainers[0].aux_loss_enabled
    largest_gradient, metrics = check_one_loss(*trainers)
    [aux_loss] = metrics["aux_loss"]
    assert aux_loss > 2.01  # an even load has 2
    router = trainers[0].model.model.layers[0].mlp.gate.weight
    assert router.grad.abs().max() > 1e-3 * largest_gradient


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_nothing_else_to_train(beta, make_trainer, folders):
    """All completions are truncated and masked: the prompts alone have a loss."""
    endless = ROLLOUTS | {"completion_ids": [[5] * len(ids) for ids in COMPLETIONS]}
    model = AutoModelForCausalLM.from_pretrained(folders["mixtral"])
    trainers = make_both(make_trainer, model, endless, mask_truncated_completions=True, beta=beta)
    largest_gradient, _ = check_one_loss(*trainers)
    assert largest_gradient > 0


def test_entropies_of_completions_that_train(make_trainer, folders):
    """The loss is the same without the entropies of the others, whose tokens still count.

    The four that train have eight tokens: as many as there are completions.
    """
    completions = [[5, 6, 2], [7, 2], [2], [8, 2], *COMPLETIONS[4:]]
    rollouts = {
        "prompt_ids": ROLLOUTS["prompt_ids"],
        "completion_ids": completions,
        "logprobs": [[-1.0] * len(ids) for ids in completions],
    }
    results = []
    for entropy_of in ("all", "trained"):
        trainer = make_trainer(
            SRTGRPOTrainer,
            folders["mixtral"],
            rewards=rewards,
            options={
                "rollout_func": lambda prompts, trainer: dict(rollouts),
                "entropy_of": entropy_of,
            },
        )
        results.append(one_loss(trainer))
    (loss, grads, metrics), (other_loss, other_grads, other_metrics) = results
    assert metrics["aux_loss"] == other_metrics["aux_loss"]
    assert metrics["entropy"] != other_metrics["entropy"]
    assert other_loss.item() == pytest.approx(loss.item(), abs=1e-6)
    for grad, other in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(grad, other, rtol=0, atol=1e-6)


def test_training(make_trainer, folders):
    """Two micro-batches an optimizer step, and evaluation."""
    settings = dict(
        model=folders["qwen3_moe"],
        gradient_accumulation_steps=2,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    theirs, ours = train_both(make_trainer, **settings)
    check_same(theirs, ours)
    names = {name for row in ours.state.log_history for name in row}
    assert {"aux_loss", "eval_aux_loss"} <= names


@pytest.mark.parametrize(
    "model, settings, message",
    [
        (
            MixtralConfig(**SMALL, num_local_experts=2),
            dict(
                gradient_checkpointing=True,
                gradient_checkpointing_kwargs={"use_reentrant": True},
            ),
            "gradient_checkpointing_kwargs: expected use_reentrant False .*, got {'use_reent",
        ),
        (
            # No layer has experts.
            Qwen3MoeConfig(**SMALL, head_dim=8, mlp_only_layers=[0, 1]),
            {},
            "router_aux_loss_coef: expected 0, or a mixture of experts .*, got Qwen3MoeFor",
        ),
    ],
)
def test_refused(model, settings, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(SRTGRPOTrainer, AutoModelForCausalLM.from_config(model), **settings)
