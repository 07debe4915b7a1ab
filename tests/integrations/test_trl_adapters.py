"""SRTGRPOTrainer with peft: training as in TRL, an adapter on the head, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import trl
from peft import LoraConfig, PromptTuningConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, Lfm2Config

from srt_fast.integrations.trl import SRTGRPOTrainer
from support.models import SMALL
from support.trl import OFF_POLICY, check_one_loss, check_same_as, one_loss, train_both

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and TRL warn about their own code


def test_a_peft_model_trains_as_in_trl(make_trainer):
    """The KL's reference is the model without its adapter: the logged KL is TRL's."""
    adapters = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0)
    theirs, ours = train_both(
        make_trainer,
        options={"peft_config": adapters},
        max_steps=6,
        beta=0.04,
        gradient_checkpointing=True,
        **OFF_POLICY,
    )
    assert ours.objective is not None
    check_same_as(theirs, ours)
    changes = [weight for name, weight in ours.model.named_parameters() if "lora_B" in name]
    assert len(changes) == 2 * 7 and all(weight.any() for weight in changes)
    assert max(weight.abs().max().item() for weight in changes) > 1e-3
    kls = [row["kl"] for row in ours.state.log_history if "kl" in row]
    assert abs(kls[0]) < 1e-6 < kls[-1]
    # A B that is not 0 any more gives A a gradient too.
    check_one_loss(ours, theirs)


def gradients(trainer: Any) -> dict[str, Tensor]:
    one_loss(trainer)
    return {name: weight.grad for name, weight in trainer.model.named_parameters()}


def test_an_adapter_on_the_head_is_trained(ragged, make_trainer):
    """B is 0 at first, so the model is TRL's, and B's gradient is scale dW A^T of TRL's dW."""
    model = AutoModelForCausalLM.from_pretrained(ragged)
    adapters = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"], bias="none")
    torch.manual_seed(0)
    model.add_adapter(adapters)
    rollouts = {"max_steps": 1, "loss_type": "grpo"}
    ours = gradients(make_trainer(SRTGRPOTrainer, model, **rollouts))
    theirs = gradients(make_trainer(trl.GRPOTrainer, **rollouts))
    names = [name for name in ours if "lora_B" in name]
    assert len(names) == 3
    for name in names:
        layer = name.split(".lora_B")[0]
        narrow = model.get_parameter(name.replace("lora_B", "lora_A")).detach()
        expected = 2 * theirs[f"{layer}.weight"] @ narrow.T
        largest = expected.abs().max()
        assert largest > 0
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-5 * largest.item())


@pytest.mark.parametrize(
    "adapters, message",
    [
        (
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            "peft_config: expected adapters inside layers, .* got PROMPT_TUNING in 'default'",
        ),
        (
            LoraConfig(
                target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM"
            ),
            "alora_invocation_tokens: expected None: .* got",
        ),
        (
            LoraConfig(target_modules=["q_proj"], lora_dropout=0.1),
            "disable_dropout: .* got 0.1 in .*lora_dropout",
        ),
    ],
)
def test_refused_adapters(adapters, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        options = {"peft_config": adapters}
        make_trainer(SRTGRPOTrainer, options=options, disable_dropout=False)


def test_a_variant_on_the_head_is_refused(ragged, make_trainer):
    model = AutoModelForCausalLM.from_pretrained(ragged)
    model.add_adapter(LoraConfig(target_modules=["lm_head"], use_dora=True))
    with pytest.raises(
        ValueError, match="LM head: expected .* plain LoRA, got default of a variant"
    ):
        make_trainer(SRTGRPOTrainer, model)


@pytest.mark.filterwarnings("default:rows are padded")
def test_a_fresh_convolution_runs_padded_rows(make_trainer):
    """Packed it would differ by 7e-6 now, and by 0.96 nats once its weights have grown."""
    config = Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])
    with pytest.warns(UserWarning, match="rows are padded.* only attention mixes positions"):
        make_trainer(SRTGRPOTrainer, AutoModelForCausalLM.from_config(config))
