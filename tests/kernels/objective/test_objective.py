"""Objective: presets against their published parts, bad values, and each surrogate by hand."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from srt_kernels import Objective, policy_loss
from srt_kernels.objective.objective import PRESETS
from srt_kernels.objective.token_loss import SURROGATES
from support.bounds import UNIT_ROUNDOFF, gamma


def test_presets_are_what_their_sources_say():
    parts = {name: Objective.preset(name, max_length=4) for name in PRESETS}
    shape = {name: (o.ratio, o.surrogate, o.reduction) for name, o in parts.items()}
    assert shape == {
        "grpo": ("token", "clip", "sequence"),
        "dapo": ("token", "clip", "token"),
        "dr_grpo": ("token", "clip", "fixed"),
        "bnpo": ("token", "clip", "token"),
        "gspo": ("sequence", "clip", "sequence"),
        "cispo": ("token", "cispo", "token"),
        "sapo": ("token", "sapo", "sequence"),
        "rloo": ("none", "reinforce", "fixed"),
        "reinforce": ("none", "reinforce", "token"),
        "srt": ("token", "clip", "token"),
    }
    clips = {
        name: (parts[name].clip_low, parts[name].clip_high, parts[name].delta) for name in parts
    }
    assert clips["grpo"] == clips["bnpo"] == clips["dr_grpo"] == (0.2, 0.2, None)
    assert clips["dapo"] == (0.2, 0.28, None)
    assert clips["gspo"] == (3e-4, 4e-4, None)
    assert clips["srt"] == (0.2, 0.2, 3)
    assert parts["cispo"].clip_high == 5
    assert (parts["sapo"].tau_pos, parts["sapo"].tau_neg) == (1.0, 1.05)
    assert Objective.preset("rloo").max_length == 1
    assert all(o.kl_coef == o.entropy_coef == 0 and o.correction == "none" for o in parts.values())
    assert Objective.preset("grpo", clip_high=0.3, kl_coef=0.04).clip_high == 0.3


@pytest.mark.parametrize("number", [0, 0.1 + 0.2, 1e-300, 5e-324, 1.7e308, 2**70])
def test_json_keeps_every_field(number):
    """Written by hand, because torch.compile cannot trace json.dumps."""
    parts = dict(kl_coef=number, entropy_coef=number, kl_bias_correction=True)
    for name in PRESETS:
        objective = Objective.preset(name, max_length=7, **parts)
        assert json.loads(objective.json) == asdict(objective)
        assert Objective.from_json(objective.json) == objective


@pytest.mark.parametrize(
    "values, named",
    [
        ({"ratio": "tokens"}, "ratio: expected one of none, token, sequence, got 'tokens'"),
        (
            {"surrogate": "ppo"},
            "surrogate: expected one of clip, cispo, sapo, reinforce, got 'ppo'",
        ),
        ({"kl_coef": -0.1}, "kl_coef: expected a finite number of at least 0, got -0.1"),
        ({"entropy_coef": math.nan}, "entropy_coef: .* got nan"),
        ({"tau_pos": 0}, "tau_pos: expected a finite number above 0, got 0"),
        ({"clip_high": "0.2"}, "clip_high: .* got '0.2'"),
        ({"clip_low": 1.5}, "clip_low: expected at most 1, got 1.5"),
        ({"delta": 1.1}, "delta: .* got 1.1"),
        ({"delta": 3.0, "surrogate": "sapo"}, "delta: .* 'sapo'"),
        ({"reduction": "fixed"}, "max_length: .* got None"),
        ({"max_length": 2.5}, "max_length: .* got 2.5"),
        ({"ratio": "none"}, "ratio: .* with surrogate 'clip', got 'none'"),
        (  # it would scale the gradient on policy
            {"surrogate": "cispo"},
            "clip_high: expected a ratio of at least 1 .* got 0.2",
        ),
        ({"kl_bias_correction": 1}, "kl_bias_correction: expected a bool, got 1"),
    ],
)
def test_bad_values_name_the_field(values, named):
    with pytest.raises(ValueError, match=named):
        Objective(**values)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="expected one of grpo, dapo, .* srt, got 'ppo'"):
        Objective.preset("ppo")
    with pytest.raises(
        ValueError, match="expected fields among ratio, .* correction_cap, got epsilon"
    ):
        Objective.preset("grpo", epsilon=0.2)


# Objective, ratio, advantage; policy term and its derivative by the log-prob, worked out by hand.
BY_HAND = [
    (dict(), 1.1, 2.0, -2.2, -2.2),  # inside the clip: the ratio's own gradient
    (dict(), 1.3, 2.0, -2.4, 0.0),  # above, A > 0: clipped
    (dict(), 1.3, -2.0, 2.6, 2.6),  # above, A < 0: not clipped
    (dict(), 0.7, -2.0, 1.6, 0.0),  # below, A < 0: clipped
    (dict(), 0.7, 2.0, -1.4, -1.4),  # below, A > 0: not clipped
    (dict(delta=3.0), 4.0, -2.0, 6.0, 0.0),  # dual clip: bounded at delta where A < 0
    # The weight is capped, the gradient kept.
    (dict(surrogate="cispo", clip_high=5.0), 7.0, 2.0, -10 * math.log(7), -10.0),
    (dict(surrogate="cispo", clip_high=5.0), 2.0, -1.0, 2 * math.log(2), 2.0),
    (dict(surrogate="sapo"), 1.0, 2.0, -4.0, -2.0),  # 4/tau sigmoid(0) A = 2 A, slope A
    (dict(surrogate="sapo"), 1.0, -1.0, 2 / 1.05, 1.0),  # colder gate where A < 0
    (dict(surrogate="reinforce"), 2.0, 1.5, -3 * math.log(2), -3.0),
]


@pytest.mark.parametrize("parts, ratio, advantage, value, slope", BY_HAND)
def test_surrogates_by_hand(parts, ratio, advantage, value, slope):
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    loss = policy_loss(
        logprob, advantages, torch.tensor([0, 1]), Objective(**parts), old_logprobs=torch.zeros(1)
    ).loss
    loss.backward()
    # A few roundings in fp64, and exp of a logarithm of at most 2.
    few_roundings = 32 * UNIT_ROUNDOFF[torch.float64]
    assert loss.item() == pytest.approx(value, rel=few_roundings)
    assert logprob.grad.item() == pytest.approx(slope, rel=few_roundings)


# Two completions of 1 and 3 tokens, and an empty one. Log-probs are all -1, advantages 1 and 2:
# terms are 1, 2, 2, 2.
@pytest.mark.parametrize(
    "name, reduction, expected",
    [
        ("reinforce", "token", (1 + 6) / 4),
        ("reinforce", "sequence", (1 + 2 + 0) / 3),
        ("reinforce", "fixed", (1 / 8 + 6 / 8 + 0) / 3),
        ("rloo", None, (1 + 6 + 0) / 3),
    ],
)
def test_reductions_by_hand(name, reduction, expected):
    overrides = {"reduction": reduction, "max_length": 8} if reduction else {}
    objective = Objective.preset(name, **overrides)
    cu_seqlens = torch.tensor([0, 1, 4, 4], dtype=torch.int32)
    advantages = torch.tensor([1.0, 2.0, 5.0])
    out = policy_loss(torch.full((4,), -1.0), advantages, cu_seqlens, objective)
    assert out.loss.item() == pytest.approx(expected, rel=gamma(4 + 8))  # weights are rounded, too


def test_every_surrogate_has_a_function():
    assert set(SURROGATES) == {Objective.preset(name, max_length=1).surrogate for name in PRESETS}
