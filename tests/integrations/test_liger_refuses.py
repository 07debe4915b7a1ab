"""Settings and arguments that FusedLinearGRPOLoss refuses."""

from __future__ import annotations

import pytest
import torch

from srt_fast.integrations.liger import FusedLinearGRPOLoss
from support.liger import H, V, make_batch


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(loss_type="ppo"), "loss_type: expected one of grpo, .*, got 'ppo'"),
        (
            dict(importance_sampling_level="turn"),
            "importance_sampling_level: expected one of token, sequence, got 'turn'",
        ),
        (
            dict(importance_sampling_level="sequence", loss_type="cispo"),
            "importance_sampling_level: expected 'token' with loss_type",
        ),
        (
            dict(importance_sampling_level="sequence", use_bias_correction_kl=True),
            "use_bias_correction_kl: expected False",
        ),
        (dict(beta=-0.1), "beta: expected a finite number of at least 0, got -0.1"),
        (dict(epsilon_low=-0.1), "epsilon_low: .*got -0.1"),
        (dict(epsilon_high=None), "epsilon_high: expected a finite number of at least 0, got None"),
        (dict(epsilon_high=float("inf")), "epsilon_high: .*got inf"),
        (dict(temperature=0), "temperature: expected a finite number above 0, got 0"),
        (dict(sapo_temperature_pos=0.0), "sapo_temperature_pos: .*got 0.0"),
        (dict(sapo_temperature_neg=-1.0), "sapo_temperature_neg: .*got -1.0"),
        (dict(delta=0.9), "delta: expected None or a finite number of at least 1, got 0.9"),
        (
            dict(loss_type="dr_grpo"),
            "max_completion_length: expected more than 0 with loss_type 'dr_grpo', got None",
        ),
    ],
)
def test_refused_settings(options, message):
    """At construction, and at the call after a change."""
    with pytest.raises(ValueError, match=message):
        FusedLinearGRPOLoss(**options)
    loss = FusedLinearGRPOLoss()
    batch = make_batch()
    for name, value in options.items():
        setattr(loss, name, value)
    with pytest.raises(ValueError, match=message):
        batch.call(loss)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(_input=torch.zeros(8 * 9, H)),
            r"_input: expected shape \[any, any, any\], got \[72, 35\]",
        ),
        (
            dict(selected_token_ids=torch.zeros(8, 8, dtype=torch.int64)),
            r"selected_token_ids: expected shape \[8, 9\], got",
        ),
        (
            dict(selected_token_ids=torch.zeros(8, 9)),
            "selected_token_ids: expected dtype .*int64.*, got torch.float32",
        ),
        (dict(selected_token_ids=torch.full((8, 9), V)), r"targets: expected values in \[0, 211\)"),
        (
            dict(attention_mask=torch.ones(8, 1)),
            r"attention_mask: expected shape \[8, 9\], got \[8, 1\]",
        ),
        (
            dict(attention_mask=torch.full((8, 9), 0.5)),
            "attention_mask: expected 0 or 1 everywhere, got 72 other values",
        ),
        (dict(attention_mask=None), "attention_mask: expected a tensor, got NoneType"),
        (dict(_input=[0.0]), "_input: expected a tensor, got list"),
        (dict(advantages=torch.zeros(8, 9)), r"advantages: expected shape \[8\], got \[8, 9\]"),
        (
            dict(old_per_token_logps=torch.zeros(72)),
            r"old_per_token_logps: expected shape \[8, 9\], got \[72\]",
        ),
        (
            dict(ref_per_token_logps=None),
            "ref_input: expected a tensor with beta and use_ref_model, or ref_per.*, got None",
        ),
        (
            dict(ref_per_token_logps=None, ref_input=torch.zeros(8, 9, H)),
            "ref_weight: expected a tensor",
        ),
        (
            dict(vllm_is_ratio=torch.ones(9)),
            r"vllm_is_ratio: expected one of the shapes \[8\], \[8, 1\], \[8, 9\], got \[9\]",
        ),
        (dict(vllm_is_ratio=-torch.ones(8)), "vllm_is_ratio: expected finite, at least 0 "),
        (
            dict(num_items_in_batch=torch.ones(8)),
            r"num_items_in_batch: expected one number, got shape \[8\]",
        ),
    ],
)
def test_refused_at_the_call(changes, message):
    batch = make_batch()
    with pytest.raises(ValueError, match=message):
        FusedLinearGRPOLoss()(**batch.leaves | batch.arguments | changes)
