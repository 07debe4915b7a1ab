"""What SRTGRPOTrainer refuses, and settings that have no Objective."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, PhiConfig

pytest.importorskip("trl")
from srt_fast.integrations.trl import SRTGRPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and TRL warn about their own code
SMALL = dict(
    vocab_size=265, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("loss_type", "ppo", "loss_type: expected one of grpo, .*, got 'ppo'"),
        ("importance_sampling_level", "group", "importance_sampling_level: .* got 'group'"),
        ("use_liger_kernel", True, "use_liger_kernel: expected False: .* got True"),
        ("torch_compile", True, "torch_compile: expected False: .* got True"),
        ("neftune_noise_alpha", 5.0, "neftune_noise_alpha: expected None: .* got 5.0"),
    ],
)
def test_settings(name, value, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(SRTGRPOTrainer, **{name: value})


@pytest.mark.parametrize(
    "config, message",
    [
        (
            LlamaConfig(**SMALL, attention_dropout=0.1),
            r"attention_dropout: expected 0.0 \(disable_.*, got 0.1 in model.layers.0",
        ),
        (
            PhiConfig(**SMALL, resid_pdrop=0.1),
            "disable_dropout: .* without dropout, got 0.1 in model.layers.0",
        ),
    ],
)
def test_models(config, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(SRTGRPOTrainer, AutoModelForCausalLM.from_config(config))


def test_arguments(make_trainer):
    with pytest.raises(ValueError, match="entropy_of: expected 'all' or 'trained', got 'some'"):
        make_trainer(SRTGRPOTrainer, options={"entropy_of": "some"})


@pytest.mark.parametrize(
    "settings",
    [dict(loss_type="cispo"), dict(epsilon=0.2, delta=1.1), dict(sapo_temperature_neg=0.0)],
)
def test_numbers_that_no_objective_takes(settings, make_trainer):
    """They are not refused: TRL's arithmetic takes them."""
    assert make_trainer(SRTGRPOTrainer, **settings).objective is None
