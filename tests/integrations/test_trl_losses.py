"""One loss of given completions: SRTGRPOTrainer beside TRL's GRPOTrainer."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    PhiConfig,
    Qwen3NextConfig,
)

trl = pytest.importorskip("trl")
from srt_fast.integrations.trl import SRTGRPOTrainer  # noqa: E402
from support.trl import (  # noqa: E402
    COMPLETIONS,
    EAGER,
    ROLLOUTS,
    check_one_loss,
    make_both,
    one_loss,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and TRL warn about their own code
SMALL = dict(
    vocab_size=265, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
)


@pytest.mark.parametrize(
    "mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
)
def test_sampler_correction(mode, make_trainer):
    """Log-probs that a sampler gave, on both sides of both bounds."""
    trainers = make_both(
        make_trainer,
        rollouts=ROLLOUTS,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=0.7,
        vllm_importance_sampling_clip_max=1.3,
        importance_sampling_level="sequence" if mode == "token_mask" else "token",
    )
    for trainer in trainers:  # GRPOConfig's use_vllm would start vLLM
        trainer.use_vllm = True
        trainer._last_loaded_step = 0
    largest_gradient, metrics = check_one_loss(*trainers)
    assert largest_gradient > 0
    [low] = metrics["sampling/importance_sampling_ratio/min"]
    [high] = metrics["sampling/importance_sampling_ratio/max"]
    assert low < high
    assert low == (0 if "mask" in mode else pytest.approx(0.7))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_tokens_of_tools_do_not_count(loss_type, make_trainer):
    """env_mask is 0 at tokens that an environment wrote. The model still reads them."""
    mask = [[int(place != 1) for place in range(len(ids))] for ids in COMPLETIONS]
    rollouts = ROLLOUTS | {"env_mask": mask}
    trainers = make_both(make_trainer, rollouts=rollouts, loss_type=loss_type, beta=0.04)
    largest_gradient, _ = check_one_loss(*trainers)
    assert largest_gradient > 0


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_nothing_to_train(beta, make_trainer):
    """All completions are truncated and masked. backward can start from the loss, as DDP needs."""
    endless = ROLLOUTS | {"completion_ids": [[5] * len(ids) for ids in COMPLETIONS]}
    trainers = make_both(make_trainer, rollouts=endless, mask_truncated_completions=True, beta=beta)
    largest_gradient, _ = check_one_loss(*trainers)
    assert largest_gradient == 0


HEADS = {
    "bias": (PhiConfig(**SMALL), {}),
    # Its attention has a softcap too, and cannot pack.
    "softcap": (
        Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0),
        EAGER,
    ),
    "scale": (GraniteConfig(**SMALL, logits_scaling=0.25), {}),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name, make_trainer):
    """A head with a bias, with a softcap and with a scale, at temperature 0.7."""
    config, options = HEADS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, **options)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        if name == "bias":
            model.lm_head.bias.normal_()
    trainers = make_both(make_trainer, model, temperature=0.7, loss_type="grpo")
    largest_gradient, _ = check_one_loss(*trainers)
    assert largest_gradient > 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(beta=0.04),
        dict(cast_lm_head_to_fp32=True),
        dict(
            cast_lm_head_to_fp32=True,
            model_init_kwargs=dict(dtype="bfloat16", tie_word_embeddings=True),
        ),
    ],
)
def test_bfloat16(settings, make_trainer):
    """Autocast, and bfloat16 weights.

    Both trainers round to bfloat16 at the same places, but the matrices that they multiply have
    different shapes.
    """
    trainers = make_both(make_trainer, bf16=True, loss_type="grpo", **settings)
    largest_gradient, _ = check_one_loss(*trainers, tolerance=2e-2)
    assert largest_gradient > 0


def test_a_second_trainer_of_one_model(make_trainer):
    """The first trainer has left its wrappers around the model's forward."""
    second_trainers = []
    for trainer_type in (SRTGRPOTrainer, trl.GRPOTrainer):
        first = make_trainer(trainer_type, max_steps=2, bf16=True)
        first.train()
        second = make_trainer(trainer_type, first.model, loss_type="grpo", beta=0.04)
        second_trainers.append(second)
    # The first ones' training rounds to bfloat16.
    largest_gradient, _ = check_one_loss(*second_trainers, tolerance=2e-2)
    assert largest_gradient > 0


def test_continuous_batching(make_trainer):
    """It samples from transformers' own attention only.

    Completions are given, because one generation takes half a minute.
    """
    ours, theirs = make_both(
        make_trainer, rollouts=ROLLOUTS, use_transformers_continuous_batching=True
    )
    assert ours.model.config._attn_implementation == "sdpa"
    largest_gradient, _ = check_one_loss(ours, theirs)
    assert largest_gradient > 0


def test_a_model_that_cannot_pack(make_trainer):
    """Half of its layers are linear attention. Rows are padded, and a warning says so."""
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        **SMALL,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=0,
        router_aux_loss_coef=0.0,
        layer_types=["linear_attention", "full_attention"],
    )
    model = AutoModelForCausalLM.from_config(config)
    expected = "rows are padded, which is slower: model Qwen3NextForCausalLM"
    with pytest.warns(UserWarning, match=expected):
        trainers = make_both(make_trainer, model, loss_type="grpo")
    largest_gradient, _ = check_one_loss(*trainers)
    assert largest_gradient > 0


@pytest.mark.parametrize(
    "entropy_of, beta, expected",
    [
        ("all", 0.0, [(True, 22), (False, 17)]),
        ("trained", 0.0, [(True, 22)]),
        ("trained", 0.04, [(False, 39), (True, 39)]),
    ],
)
def test_forward_passes(entropy_of, beta, expected, make_trainer):
    """Whether each forward pass has a gradient, and its tokens.

    The second group is unanimous: only a KL trains it. The pass of 39 tokens without gradient is
    the reference's.
    """
    trainer = make_trainer(
        SRTGRPOTrainer,
        rewards=lambda **_: [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0],
        options={
            "rollout_func": lambda prompts, trainer: dict(ROLLOUTS),
            "entropy_of": entropy_of,
        },
        beta=beta,
    )
    passes = []

    def record(module, args, inputs):
        passes.append((torch.is_grad_enabled(), inputs["input_ids"].numel()))

    for model in (trainer.model, trainer.ref_model):
        if model is not None:
            model.model.register_forward_pre_hook(record, with_kwargs=True)
    one_loss(trainer)
    assert passes == expected
