"""verl's own policy losses beside ours. Both come from its registry, as its trainer calls them."""

from __future__ import annotations

import inspect
import runpy
from typing import Any

import pytest
import torch
from torch import Tensor

from srt_kernels import Objective, policy_loss
from srt_kernels.testing import assert_close
from support.paths import ROOT

core_algos = pytest.importorskip(
    "verl.trainer.ppo.core_algos", reason="verl is not installed: make test installs it"
)
from verl.workers.config import ActorConfig, PolicyLossConfig  # noqa: E402

from srt_fast.integrations import verl as integration  # noqa: E402

EXAMPLE = ROOT / "examples" / "verl_loss.py"
LENGTHS = [3, 1, 5, 0, 7, 1, 9, 2]
MASK = torch.arange(9) < torch.tensor(LENGTHS)[:, None]  # [B, T]
TOLERANCE = 1e-7  # verl adds 1e-8 to counts, and terms have sizes below 10
FP64 = 100 * 28 * 2**-53  # terms of size 1, some operations each, 28 tokens in all
GLOBAL_BATCH = dict(dp_size=2, batch_num_tokens=70, global_batch_size=19, loss_scale_factor=16)
UNCOVERED = {"dppo_tv", "dppo_kl", "clip_cov", "kl_cov", "geo_mean", "bypass_mode"}
SETTINGS: dict[str, dict[str, Any]] = {
    "vanilla": dict(clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=1.5),
    "gspo": dict(clip_ratio_low=0.05, clip_ratio_high=0.01),
    "sapo": dict(tau_pos=2.0, tau_neg=3.0),
    "cispo": dict(clip_ratio_low=0.2, clip_ratio_high=0.1),
    "gpg": {},
    "dro": dict(policy_loss=PolicyLossConfig(dro_beta=0.3)),
}

Result = tuple[Tensor, Tensor, dict[str, float]]  # loss, gradient by log_prob, metrics


def make_config(**settings: Any) -> ActorConfig:
    return ActorConfig(strategy="fsdp", rollout_n=4, use_dynamic_bsz=True, **settings)


def random_batch(seed: int = 0, mask: Tensor = MASK) -> dict[str, Tensor]:
    """verl's keyword arguments [B, T]. Padding holds arbitrary numbers.

    Ratios lie on both sides of every bound. Advantages are positive, negative and 0.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(*mask.shape, generator=generator, dtype=torch.float64)

    log_prob = -normal().abs()
    old_log_prob = log_prob + 0.5 * normal()
    advantages = normal() * (torch.arange(mask.numel()).view(mask.shape) % 5 > 0)
    padding = 3.0 * normal()
    return {
        "old_log_prob": torch.where(mask, old_log_prob, padding),
        "log_prob": torch.where(mask, log_prob, padding),
        "advantages": torch.where(mask, advantages, padding),
        "response_mask": mask,
    }


def run(name: str, batch: dict[str, Tensor], **settings: Any) -> Result:
    log_prob = batch["log_prob"].clone().requires_grad_()
    arguments = batch | {"log_prob": log_prob} | settings
    loss, metrics = core_algos.get_policy_loss_fn(name)(**arguments)
    return loss.detach(), torch.autograd.grad(loss, log_prob)[0], metrics


def check(mode: str, batch: dict[str, Tensor], **settings: Any) -> dict[str, float]:
    """verl's loss, gradient and metrics are ours. Returns the metrics."""
    loss, gradient, metrics = run(mode, batch, **settings)
    our_loss, our_gradient, our_metrics = run(f"srt_{mode}", batch, **settings)
    assert_close("loss", our_loss, loss, atol=TOLERANCE)
    assert_close("gradient", our_gradient, gradient, atol=TOLERANCE)
    assert our_metrics == pytest.approx(metrics, abs=1e-6)  # verl's fractions are fp32
    return metrics


@pytest.mark.parametrize("aggregation", integration.AGGREGATIONS)
@pytest.mark.parametrize("mode", integration.MODES)
def test_policy_loss(mode, aggregation):
    """Normalised by the batch and by verl's global batch, with and without rollout weights.

    Weights are as verl's rollout_is_threshold "0.5_5.0" (IcePop) leaves them: 0 below 0.5. That is
    two tokens of seven.
    """
    weights = torch.linspace(0.1, 2.0, 7, dtype=torch.float64).repeat(11)[: MASK.numel()]
    weights = torch.where(weights < 0.5, 0.0, weights).view(MASK.shape)
    for seed, batch_info in enumerate(({}, GLOBAL_BATCH)):
        batch = random_batch(seed)
        config = make_config(**SETTINGS[mode], global_batch_info=batch_info)
        settings = dict(loss_agg_mode=aggregation, config=config)
        metrics = check(mode, batch, **settings)
        if mode != "dro":
            check(mode, batch, **settings, rollout_is_weights=weights)
        if mode in ("vanilla", "gspo", "cispo"):
            assert metrics["actor/pg_clipfrac"] > 0
        if mode == "vanilla":
            assert metrics["actor/pg_clipfrac_lower"] > 0


@pytest.mark.parametrize("mode", ["vanilla", "gspo", "cispo"])
def test_a_lower_bound_below_zero(mode):
    """1 - clip_ratio_low is negative: the bound never binds."""
    check(mode, random_batch(), config=make_config(clip_ratio_low=1.5))


@pytest.mark.parametrize("mode", ["vanilla", "gspo", "cispo"])
def test_clip_ratio_is_the_default_of_both_bounds(mode):
    config = make_config(clip_ratio=0.1, clip_ratio_low=None, clip_ratio_high=None)
    check(mode, random_batch(), config=config)


@pytest.mark.parametrize("mode", ["vanilla", "gspo", "cispo"])
def test_on_policy(mode):
    """The ratio is exactly 1."""
    batch = random_batch()
    check(mode, batch | {"old_log_prob": batch["log_prob"]}, config=make_config())


def test_as_many_tokens_as_completions():
    """Advantages per token and per completion then have the same shape."""
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 0, 0]])
    batch = random_batch(mask=mask.bool())
    check("vanilla", batch | {"response_mask": mask}, config=make_config())
    check("gspo", batch, config=make_config(), loss_agg_mode="seq-mean-token-mean")


@pytest.mark.parametrize("mode", ["vanilla", "gspo", "sapo", "cispo", "dro"])
@pytest.mark.parametrize("nats", [-30.0, 30.0])
def test_a_token_that_is_far_off(mode, nats):
    """One log-ratio is beyond verl's bound.

    Advantages are positive: for negative ones the bound of gspo's gradient is not verl's.
    """
    batch = random_batch()
    batch["advantages"] = batch["advantages"].abs()
    batch["old_log_prob"][4, 2] = batch["log_prob"][4, 2] - nats
    check(mode, batch, config=make_config(**SETTINGS[mode]))


@pytest.mark.parametrize("counts", [{}, dict(batch_num_tokens=0, global_batch_size=0)])
@pytest.mark.parametrize("aggregation", integration.AGGREGATIONS)
@pytest.mark.parametrize("mode", integration.MODES)
def test_a_batch_without_tokens_has_loss_0(mode, aggregation, counts):
    """Counted by us, and by verl: its counts of a mini-batch whose tokens are all masked are 0."""
    batch = random_batch(mask=torch.zeros(2, 3, dtype=torch.bool))
    config = make_config(**SETTINGS[mode], global_batch_info=counts)
    loss, gradient, metrics = run(f"srt_{mode}", batch, loss_agg_mode=aggregation, config=config)
    assert loss == 0
    assert gradient.count_nonzero() == 0
    assert set(metrics.values()) <= {0.0}


def test_gspo_is_the_preset_if_a_completion_has_one_advantage():
    batch = random_batch()
    advantages = batch["advantages"][:, 0]
    batch["advantages"] = advantages[:, None].expand(MASK.shape)
    bounds = SETTINGS["gspo"]
    loss, gradient, _ = run(
        "srt_gspo", batch, loss_agg_mode="seq-mean-token-mean", config=make_config(**bounds)
    )
    logprobs = batch["log_prob"][MASK].requires_grad_()
    expected = policy_loss(
        logprobs,
        advantages,
        torch.tensor([0, *LENGTHS]).cumsum(0),
        Objective.preset(
            "gspo", clip_low=bounds["clip_ratio_low"], clip_high=bounds["clip_ratio_high"]
        ),
        old_logprobs=batch["old_log_prob"][MASK],
        normalizer=7,  # completions with tokens
    )
    expected_gradient = torch.autograd.grad(expected.loss, logprobs)[0]
    # fp64: a sum of 28 terms, of size 1 and in two orders.
    assert_close("loss", loss, expected.loss.detach(), atol=FP64)
    assert_close("gradient", gradient[MASK], expected_gradient, atol=FP64)


def test_every_mode_of_verl_is_covered_or_named():
    verl_modes = {name for name in core_algos.POLICY_LOSS_REGISTRY if not name.startswith("srt_")}
    assert verl_modes == UNCOVERED | set(integration.MODES)


@pytest.mark.parametrize("mode", sorted(UNCOVERED))
def test_modes_that_are_not_covered(mode):
    with pytest.raises(ValueError, match=f"loss_mode: expected one of vanilla.*got '{mode}'"):
        integration.objective_of(mode, "token-mean", make_config())
    with pytest.raises(ValueError, match=f"srt_{mode}"):
        core_algos.get_policy_loss_fn(f"srt_{mode}")


TWO_RANKS = make_config(global_batch_info={"dp_size": 2})


@pytest.mark.parametrize(
    "mode, settings, message",
    [
        (
            "vanilla",
            dict(config=make_config(clip_ratio_c=1.1)),
            r"clip_ratio_c: expected more than 1 \+ clip_ratio_high = 1.2.*got 1.1",
        ),
        (
            "vanilla",
            dict(config=make_config(), loss_agg_mode="mean"),
            "loss_agg_mode: expected one of token-mean.*got 'mean'",
        ),
        (
            "vanilla",
            dict(config=TWO_RANKS),
            "batch_num_tokens: expected a number with dp_size 2",
        ),
        ("vanilla", dict(), "config: expected verl's ActorConfig, got None"),
        ("sapo", dict(config=TWO_RANKS), "global_batch_size: expected a number with dp_size 2"),
        (
            "dro",
            dict(config=make_config()),
            "policy_loss.dro_beta: expected a number above 0.*got None",
        ),
        (
            "dro",
            dict(config=make_config(**SETTINGS["dro"]), rollout_is_weights=MASK.double()),
            "rollout_is_weights: expected None",
        ),
    ],
)
def test_settings_that_are_not_covered(mode, settings, message):
    with pytest.raises(ValueError, match=message):
        run(f"srt_{mode}", random_batch(), **settings)


@pytest.mark.parametrize("mode", integration.MODES)
def test_signature_is_verls(mode):
    def parameters(name: str) -> list[tuple]:
        signature = inspect.signature(core_algos.get_policy_loss_fn(name))
        return [(part.name, part.default, part.kind) for part in signature.parameters.values()]

    assert parameters(f"srt_{mode}") == parameters(mode)


def test_example(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(integration.MODES)
    # Differences of fp32 gradients, which are below 1.
    assert all(float(line.split()[-1]) < 16 * 2**-24 for line in lines[1:])
