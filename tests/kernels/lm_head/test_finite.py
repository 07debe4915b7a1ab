"""nan and inf in what a loss is made of: an error that names the tensor and the first place."""

import os

import pytest
import torch

from srt_kernels import (
    Objective,
    group_advantage,
    linear_logprob,
    linear_policy_loss,
    majority_vote,
    policy_loss,
)
from srt_kernels.lm_head.gradient_sources import active_index
from srt_kernels.lm_head.lm_head import make_head
from srt_kernels.objective.token_inputs import make_token_inputs
from srt_kernels.testing import PackedRollouts, packed_rollouts
from support.ops import LENGTHS

ON_GPU = os.environ.get("SRT_TEST_DEVICE", "cpu") != "cpu"
EVERYTHING = Objective.preset("srt", kl_coef=0.1, correction="token_truncate")
BAD = [torch.nan, torch.inf, -torch.inf]
# The first token of rollout 4 (LENGTHS). Bad values begin there.
FIRST, ROLLOUT = 11, 4
TENSORS = ("advantages", "old_logprobs", "ref_logprobs", "sampler_logprobs")


def make_batch() -> PackedRollouts:
    """Of LENGTHS. Every rollout has an advantage."""
    batch = packed_rollouts(LENGTHS)
    batch.advantages.abs_().add_(0.1)
    return batch


def arguments_of(batch: PackedRollouts, name: str, value: float) -> dict:
    """Arguments of a loss. The tensor `name` has bad values at two tokens, or at their rollout."""
    tensors = {tensor: getattr(batch, tensor).clone() for tensor in TENSORS}
    if name == "advantages":
        tensors[name][ROLLOUT] = value
    else:
        tensors[name][FIRST : FIRST + 2] = value
    return tensors | dict(cu_seqlens=batch.cu_seqlens, objective=EVERYTHING)


def message(name: str, value: float) -> str:
    return f"{name}: expected finite values, got {value} at token {FIRST}, of rollout {ROLLOUT}"


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", TENSORS)
def test_losses_name_the_tensor_and_the_first_token(name, value):
    batch = make_batch()
    bad = arguments_of(batch, name, value)
    head = (batch.hidden, batch.weight, batch.targets)
    with pytest.raises(ValueError, match=message(name, value)):
        linear_policy_loss(*head, **bad)
    if not ON_GPU:  # which would have to wait for the device
        with pytest.raises(ValueError, match=message(name, value)):
            linear_policy_loss(*head, **bad, all_rows=True)
        with pytest.raises(ValueError, match=message(name, value)):
            policy_loss(batch.old_logprobs, **bad)


@pytest.mark.skipif(ON_GPU, reason="a GPU would have to wait for the device")
def test_policy_loss_names_its_own_tensors():
    batch = make_batch()
    bad = batch.old_logprobs.clone()
    bad[FIRST] = torch.nan
    rollouts = (batch.advantages, batch.cu_seqlens)
    with pytest.raises(ValueError, match=message("logprobs", torch.nan)):
        policy_loss(bad, *rollouts, Objective())
    with pytest.raises(ValueError, match=message("entropies", torch.nan)):
        policy_loss(batch.old_logprobs, *rollouts, Objective(entropy_coef=0.1), entropies=bad)
    policy_loss(batch.old_logprobs, *rollouts, Objective(), entropies=bad)  # only passed through


def test_tokens_without_gradient_may_have_any_value():
    """As the log-probs of tokens that an earlier call did not compute: nan."""
    batch = make_batch()
    batch.advantages[ROLLOUT] = 0
    bad = arguments_of(batch, "old_logprobs", torch.nan) | dict(objective=Objective.preset("srt"))
    result = linear_policy_loss(batch.hidden, batch.weight, batch.targets, **bad)
    assert result.loss.isfinite()
    assert result.logprobs[FIRST].isnan()


@pytest.mark.parametrize("correction", ["token_truncate", "sequence_mask"])
@pytest.mark.parametrize("name, value", [("old_logprobs", -torch.inf), ("sampler_logprobs", 1e9)])
def test_a_correction_of_0_hides_no_bad_value(correction, name, value):
    """The second value is a valid one, whose correction is 0 too: the tokens are left out."""
    batch = make_batch()
    bad = arguments_of(batch, name, value)
    bad["objective"] = Objective.preset("srt", correction=correction)
    head = (batch.hidden, batch.weight, batch.targets)
    if value < 0:
        with pytest.raises(ValueError, match=message(name, value)):
            linear_policy_loss(*head, **bad)
    else:
        result = linear_policy_loss(*head, **bad)
        assert result.loss.isfinite() and result.logprobs[FIRST].isnan()


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 0.0, -1.0])
def test_a_normalizer_is_a_size(value):
    batch = make_batch()
    head = (batch.hidden, batch.weight, batch.targets)
    rollouts = (batch.advantages, batch.cu_seqlens, Objective())
    expected = f"normalizer: expected a finite number above 0.* got .*{value}"
    for normalizer in (value, torch.tensor(value)):
        with pytest.raises(ValueError, match=expected):
            linear_policy_loss(*head, *rollouts, normalizer=normalizer)
        if not (ON_GPU and isinstance(normalizer, torch.Tensor)):
            with pytest.raises(ValueError, match=expected):
                policy_loss(batch.old_logprobs, *rollouts, normalizer=normalizer)
    # What a GPU reads, where the value of a tensor is not checked before.
    inputs = make_token_inputs(
        batch.targets, torch.float32, *rollouts[:2], Objective().json, *5 * [None]
    )[1]
    with pytest.raises(ValueError, match=expected):
        active_index(Objective(), make_head(*head), inputs, torch.tensor(value))


@pytest.mark.skipif(ON_GPU, reason="a GPU would have to wait for the device")
def test_rewards_and_weights():
    """A nan reward is one that is not known."""
    rewards = torch.tensor([1.0, torch.nan, 0.0, -torch.inf, torch.inf])
    cu_groups = torch.tensor([0, 3, 5])
    expected = "rewards: expected finite values or nan, got -inf at index 3"
    with pytest.raises(ValueError, match=expected):
        group_advantage(rewards, cu_groups, kind="mean")
    keys = torch.ones(5, dtype=torch.int64)
    for value in (*BAD, -1.0):
        weights = torch.ones(5)
        weights[2:] = value
        expected = f"weights: expected finite, at least 0, got {value} at index 2"
        with pytest.raises(ValueError, match=expected):
            majority_vote(keys, cu_groups, weights=weights)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_refused(dtype):
    batch = make_batch()
    names = "float16 or bfloat16 or float32 or float64"
    for name in ("hidden", "weight", "bias"):
        tensors = dict(hidden=batch.hidden, weight=batch.weight, bias=batch.bias)
        tensors[name] = tensors[name].to(dtype)
        expected = f"{name}: expected dtype {names}, got {dtype}"
        with pytest.raises(ValueError, match=expected):
            linear_logprob(**tensors, targets=batch.targets)
        with pytest.raises(ValueError, match=expected):
            rollouts = (batch.advantages, batch.cu_seqlens, Objective())
            linear_policy_loss(
                tensors["hidden"],
                tensors["weight"],
                batch.targets,
                *rollouts,
                bias=tensors["bias"],
            )


def test_a_second_derivative_of_logprobs_is_refused():
    batch = make_batch()
    hidden = batch.hidden.requires_grad_()
    logprobs, _ = linear_logprob(hidden, batch.weight, batch.targets)
    gradient = torch.autograd.grad(logprobs.sum(), hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="linear_logprob is differentiable once"):
        gradient.square().sum().backward()


def test_a_tangent_is_refused():
    """torch would take the derivative as 0."""
    batch = make_batch()
    rollouts = (batch.advantages, batch.cu_seqlens, Objective())
    functions = {
        "hidden": lambda x: linear_logprob(x, batch.weight, batch.targets)[0],
        "weight": lambda x: linear_policy_loss(batch.hidden, x, batch.targets, *rollouts).loss,
        "logprobs": lambda x: policy_loss(x, *rollouts).loss,
    }
    leaves = dict(hidden=batch.hidden, weight=batch.weight, logprobs=batch.old_logprobs)
    for name, function in functions.items():
        with pytest.raises(RuntimeError, match=f"{name}: expected no tangent"):
            torch.func.jvp(function, (leaves[name],), (torch.ones_like(leaves[name]),))
