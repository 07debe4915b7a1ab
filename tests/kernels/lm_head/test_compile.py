"""The ops as torch.library ops: torch.compile without graph breaks, FakeTensor, opcheck."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from srt_kernels import (
    Objective,
    group_advantage,
    linear_logprob,
    linear_policy_loss,
    majority_vote,
    policy_loss,
)
from srt_kernels.core.backend import use_triton
from srt_kernels.testing import packed_rollouts
from support.ops import LENGTHS, head_leaves

pytestmark = pytest.mark.skipif(
    use_triton(torch.zeros(1)) and torch.get_default_device().type == "cpu",
    reason="nothing to compile in the interpreter",
)


def step(hidden, weight, bias, targets, keys, cu_seqlens, old, ref):
    """Answers to loss, with each of the ops, and objectives that are made inside."""
    objective = Objective.preset("gspo", kl_coef=0.1, entropy_coef=0.01)
    cu_groups = torch.tensor([0, 4, 8], dtype=torch.int32, device=hidden.device)
    vote = majority_vote(keys, cu_groups)
    advantages = group_advantage(vote.rewards, cu_groups, kind="mean")
    fused = linear_policy_loss(
        hidden,
        weight,
        targets,
        advantages,
        cu_seqlens,
        objective,
        bias=bias,
        old_logprobs=old,
        ref_logprobs=ref,
    )
    logprobs, entropies = linear_logprob(hidden, weight, targets, bias=bias, temperature=0.7)
    unfused = policy_loss(
        logprobs,
        advantages,
        cu_seqlens,
        Objective(surrogate="cispo", clip_high=2, kl_coef=0.1, kl_bias_correction=True),
        old_logprobs=old,
        ref_logprobs=ref,
        entropies=entropies,
    )
    loss = fused.loss + unfused.loss
    return (
        loss,
        fused.logprobs,
        fused.rows,
        unfused.clip_fraction,
        vote.majority,
        vote.share,
        vote.runner_up,
        vote.valid,
    )


def arguments():
    batch = packed_rollouts(LENGTHS)
    keys = torch.tensor([7, 0, 5, 7, 2, 2, 2, 2])
    return (
        *head_leaves(batch),
        batch.targets,
        keys,
        batch.cu_seqlens,
        batch.old_logprobs,
        batch.ref_logprobs,
    )


@pytest.mark.filterwarnings("ignore")
def test_one_graph_and_the_same_results():
    """backend aot_eager traces forward and backward as inductor's, which adds code generation."""
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        inputs = arguments()
        loss, *others = function(*inputs)
        loss.backward()
        results.append([loss, *others, *(leaf.grad for leaf in inputs[:3])])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [None, True])
def test_an_objective_made_inside_of_numbers_that_are_symbols(dynamic):
    """torch.compile makes symbols of numbers that change, and with `dynamic` of all."""

    def loss(logprobs, advantages, cu_seqlens, clip_high, max_length):
        objective = Objective.preset(
            "srt", clip_high=clip_high, reduction="fixed", max_length=max_length
        )
        return policy_loss(
            logprobs, advantages, cu_seqlens, objective, old_logprobs=logprobs - 1
        ).loss

    batch = packed_rollouts(LENGTHS)
    rollouts = (batch.old_logprobs, batch.advantages, batch.cu_seqlens)
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="eager")
    for clip_high, max_length in ((0.2, 7), (0.3, 9), (1, 11)):
        numbers = (clip_high, max_length)
        assert torch.equal(compiled(*rollouts, *numbers), loss(*rollouts, *numbers)), numbers


def test_fake_tensors_have_the_shapes_and_types_of_real_ones():
    real = step(*arguments())
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fake = step(*(mode.from_tensor(tensor) for tensor in arguments()))
    for expected, actual in zip(real, fake, strict=True):
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        assert actual.device == expected.device


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck(dtype):
    """Schemas, fake kernels and autograd registrations, by torch's own checks."""
    batch = packed_rollouts([3, 2, 4])
    hidden = batch.hidden.to(dtype, copy=True).requires_grad_()
    weight = batch.weight.to(dtype).t().contiguous().t()  # stored the other way round
    weight.requires_grad_()
    head = (hidden, weight, batch.targets, None, None, False, 1.0, None, 4, "")
    rollouts = (
        batch.advantages,
        batch.cu_seqlens,
        Objective.preset("srt").json,
        batch.old_logprobs,
        None,
        None,
        None,
        None,
    )
    ops = torch.ops.srt_kernels
    # Not retraced at other sizes, because the values of cu_seqlens tie the sizes to each other.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.linear_logprob.default, head, test_utils=checks)
    torch.library.opcheck(
        ops.linear_policy_loss.default,
        (*head, *rollouts, False, [True, True, False]),
        test_utils=checks,
    )
    logprobs = batch.old_logprobs.clone().requires_grad_()
    torch.library.opcheck(ops.policy_loss.default, (logprobs, None, *rollouts), test_utils=checks)
    torch.library.opcheck(
        ops.group_advantage.default,
        (torch.ones(4), torch.tensor([0, 4]), "grpo"),
        test_utils=checks,
    )
    for weights in (None, torch.ones(4, dtype=dtype)):
        votes = (torch.tensor([7, 0, 5, 7]), torch.tensor([0, 4]), weights, True)
        torch.library.opcheck(ops.majority_vote.default, votes, test_utils=checks)
